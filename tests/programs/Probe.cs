/* The twin of probe.c for the CLR: the same commands, words and codes. What it can not say answers "unsupported" with code 65. */

using System;
using System.Collections;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using System.Threading;

public static class Probe
{
    const int Unsupported = 65, Usage = 64, MiB = 1 << 20;
    static readonly UTF8Encoding Utf8 = new UTF8Encoding(false);
    static readonly StreamWriter Out = new StreamWriter(Console.OpenStandardOutput(), Utf8, 65536) { NewLine = "\n" };
    static readonly StreamWriter Err = new StreamWriter(Console.OpenStandardError(), Utf8) { NewLine = "\n", AutoFlush = true };

    static void Ready()
    {
        Out.WriteLine("ready");
        Out.Flush();
    }

    static int Failed(string what, Exception why)
    {
        Err.WriteLine("{0}: {1} ({2})", what, Reason(why), why.Message);
        return 1;
    }

    static string Reason(Exception why)
    {
        string text = why.Message;
        if (why is UnauthorizedAccessException || text.Contains("denied") || text.Contains("Read-only") || text.Contains("not permitted"))
            return "denied";
        if (why is FileNotFoundException || why is DirectoryNotFoundException || text.Contains("does not exist") || text.Contains("resolve"))
            return "missing";
        if (text.Contains("exist") || text.Contains("not empty"))
            return "exists";
        if (text.Contains("full") || text.Contains("No space"))
            return "full";
        if (text.Contains("Too many"))
            return "many";
        return why is SocketException ? "unreachable" : "other";
    }

    static string Hexadecimal(byte[] bytes)
    {
        return BitConverter.ToString(bytes).Replace("-", "").ToLowerInvariant();
    }

    static int Env(string[] words)
    {
        if (words.Length > 0) {
            string value = Environment.GetEnvironmentVariable(words[0]);
            if (value != null)
                Out.WriteLine(value);
            return value == null ? 1 : 0;
        }
        var all = new List<string>();
        foreach (DictionaryEntry entry in Environment.GetEnvironmentVariables())
            all.Add(entry.Key + "=" + entry.Value);
        all.Sort(string.CompareOrdinal);
        all.ForEach(Out.WriteLine);
        return 0;
    }

    static int Copy(Stream from, Stream to)
    {
        var block = new byte[65536];
        for (int got; (got = from.Read(block, 0, block.Length)) > 0;) {
            to.Write(block, 0, got);
            to.Flush();
        }
        return 0;
    }

    static int CountInput()
    {
        var block = new byte[65536];
        long total = 0;
        Stream input = Console.OpenStandardInput();
        for (int got; (got = input.Read(block, 0, block.Length)) > 0;)
            total += got;
        Out.WriteLine(total);
        return 0;
    }

    static int Lines()
    {
        var reader = new StreamReader(Console.OpenStandardInput(), Utf8);
        for (string line; (line = reader.ReadLine()) != null;) {
            Out.WriteLine("got " + line);
            Out.Flush();
        }
        return 0;
    }

    static int Overflow(int depth)
    {
        return Overflow(depth + 1) + 1;
    }

    static int ReadFile(string path)
    {
        using (var file = File.OpenRead(path)) {
            Out.Flush();
            return Copy(file, Out.BaseStream);
        }
    }

    static int List(string path)
    {
        var names = new List<string>();
        foreach (string entry in Directory.GetFileSystemEntries(path))
            names.Add(Path.GetFileName(entry));
        names.Sort(string.CompareOrdinal);
        names.ForEach(Out.WriteLine);
        return 0;
    }

    static int Remove(string path)
    {
        if (Directory.Exists(path))
            Directory.Delete(path);
        else if (File.Exists(path))
            File.Delete(path);
        else
            throw new FileNotFoundException(path + " does not exist");
        return 0;
    }

    static int MakeDirectory(string path)
    {
        if (Directory.Exists(path) || File.Exists(path))
            throw new IOException(path + " exists");
        Directory.CreateDirectory(path);
        return 0;
    }

    static int Rename(string from, string to)
    {
        if (Directory.Exists(from)) {
            Directory.Move(from, to);
            return 0;
        }
        File.Delete(to);
        File.Move(from, to);
        return 0;
    }

    static int Opens(string[] words)
    {
        var held = new List<FileStream>();
        try {
            while (held.Count < int.Parse(words[0]))
                held.Add(File.OpenRead(words[1]));
        } catch (IOException) {
            // The limit: how many there are is what is asked.
        }
        Out.WriteLine(held.Count);
        return 0;
    }

    static int Fill(string[] words)
    {
        int taken = 0;
        var piece = new byte[MiB];
        try {
            using (var file = new FileStream(words[0], FileMode.Create, FileAccess.Write, FileShare.None, 1))
                for (; taken < int.Parse(words[1]); taken++)
                    file.Write(piece, 0, piece.Length);
        } catch (IOException error) {
            Out.WriteLine(taken);
            return Failed("fill", error);
        }
        Out.WriteLine(taken);
        return 0;
    }

    static int Tmp()
    {
        string path = Path.Combine(Environment.GetEnvironmentVariable("TMPDIR") ?? "/tmp", "probe.tmp");
        File.WriteAllText(path, "kept");
        Out.WriteLine(File.ReadAllText(path));
        File.Delete(path);
        return 0;
    }

    static int Spin(string[] words)
    {
        var watch = Stopwatch.StartNew();
        long until = words.Length > 0 ? long.Parse(words[0]) * 1000 : long.MaxValue;
        Ready();
        while (watch.ElapsedMilliseconds < until) { }
        return 0;
    }

    static int Eat(string[] words)
    {
        var held = new List<byte[]>();
        while (held.Count < int.Parse(words[0])) {
            var piece = new byte[MiB];
            for (int at = 0; at < MiB; at += 1024)
                piece[at] = 1;
            held.Add(piece);
        }
        Out.WriteLine("ate " + held.Count);
        return 0;
    }

    static int Flood(string[] words)
    {
        long left = words.Length > 0 && words[0] != "0" ? long.Parse(words[0]) : long.MaxValue;
        var block = new byte[65536];
        for (int i = 0; i < block.Length; i++)
            block[i] = (byte)'x';
        for (Stream output = Console.OpenStandardOutput(); left > 0; left -= block.Length)
            output.Write(block, 0, (int)Math.Min(left, block.Length));
        return 0;
    }

    static int Fork(string[] words)
    {
        int started = 0;
        try {
            for (; started < int.Parse(words[0]); started++)
                new Thread(() => Thread.Sleep(Timeout.Infinite), 65536) { IsBackground = true }.Start();
        } catch (Exception) {
            // The limit, whatever it is called.
        }
        Out.WriteLine("started " + started);
        Out.Flush();
        Thread.Sleep(1000);
        return 0;
    }

    static uint Mixed(uint rounds)
    {
        ulong state = 88172645463325252UL;
        unchecked {
            for (uint i = 0; i < rounds; i++) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state *= 0x9E3779B97F4A7C15UL;
            }
            return (uint)(state >> 32) ^ (uint)state;
        }
    }

    static uint Primes()
    {
        var composite = new bool[MiB];
        uint sum = 0;
        unchecked {
            for (int i = 2; i < MiB; i++) {
                if (composite[i])
                    continue;
                sum = sum * 31 + (uint)i;
                for (int at = i * 2; at < MiB; at += i)
                    composite[at] = true;
            }
        }
        return sum;
    }

    static uint Product()
    {
        const int size = 160;
        var a = new uint[size, size];
        var b = new uint[size, size];
        uint sum = 0;
        unchecked {
            for (int i = 0; i < size * size; i++) {
                a[i / size, i % size] = (uint)i * 2654435761u;
                b[i / size, i % size] = (uint)i ^ 0x5bd1e995u;
            }
            for (int i = 0; i < size; i++)
                for (int j = 0; j < size; j++) {
                    uint cell = 0;
                    for (int k = 0; k < size; k++)
                        cell += a[i, k] * b[k, j];
                    sum = sum * 33 + cell;
                }
        }
        return sum;
    }

    static int Compute(string[] words)
    {
        uint sum = 0;
        unchecked {
            for (int i = words.Length > 0 ? int.Parse(words[0]) : 1; i > 0; i--)
                sum = sum * 2654435761u + (Mixed(1000000) ^ Primes() ^ Product());
        }
        Out.WriteLine(sum.ToString("x8"));
        return 0;
    }

    static int Threads(string[] words)
    {
        var cells = new uint[int.Parse(words[0])];
        var all = new List<Thread>();
        for (int i = 0; i < cells.Length; i++) {
            int cell = i;
            all.Add(new Thread(() => cells[cell] = Mixed(1000 + (uint)cell)));
            all[i].Start();
        }
        all.ForEach(one => one.Join());
        uint sum = 0;
        foreach (uint cell in cells)
            unchecked { sum += cell; }
        Out.WriteLine(sum.ToString("x8"));
        return 0;
    }

    static int Connect(string[] words)
    {
        using (var peer = new TcpClient(words[0], int.Parse(words[1]))) {
            byte[] text = Utf8.GetBytes((words.Length > 2 ? words[2] : "hello") + "\n");
            peer.GetStream().Write(text, 0, text.Length);
            peer.Client.Shutdown(SocketShutdown.Send);
            return Copy(peer.GetStream(), Out.BaseStream);
        }
    }

    static int Listen(string[] words)
    {
        var door = new TcpListener(IPAddress.Any, int.Parse(words[0]));
        door.Start();
        Ready();
        using (var peer = door.AcceptTcpClient())
            return Copy(peer.GetStream(), peer.GetStream());
    }

    static int Resolve(string[] words)
    {
        foreach (IPAddress found in Dns.GetHostAddresses(words[0]))
            Out.WriteLine(found);
        return 0;
    }

    static int Random()
    {
        var bytes = new byte[8];
        using (var source = RandomNumberGenerator.Create())
            source.GetBytes(bytes);
        Out.WriteLine(Hexadecimal(bytes));
        return 0;
    }

    static int Files(string name, string[] words)
    {
        switch (name) {
        case "read": return ReadFile(words[0]);
        case "write": File.WriteAllBytes(words[0], Utf8.GetBytes(words[1])); return 0;
        case "append": File.AppendAllText(words[0], words[1], Utf8); return 0;
        case "list": return List(words[0]);
        case "rename": return Rename(words[0], words[1]);
        case "remove": return Remove(words[0]);
        case "mkdir": return MakeDirectory(words[0]);
        case "size": Out.WriteLine(new FileInfo(words[0]).Length); return 0;
        case "kind": Out.WriteLine(Directory.Exists(words[0]) ? "directory" : "file " + new FileInfo(words[0]).Length); return 0;
        case "opens": return Opens(words);
        case "fill": return Fill(words);
        case "tmp": return Tmp();
        default: return -1;
        }
    }

    static int Load(string name, string[] words)
    {
        switch (name) {
        case "sleep": Ready(); Thread.Sleep(int.Parse(words[0])); return 0;
        case "spin": return Spin(words);
        case "eat": return Eat(words);
        case "flood": return Flood(words);
        case "fork": return Fork(words);
        case "threads": return Threads(words);
        case "compute": return Compute(words);
        case "orphan": Process.Start(new ProcessStartInfo("/bin/sleep", "600") { UseShellExecute = false }); return 0;
        case "connect": return Connect(words);
        case "listen": return Listen(words);
        case "resolve": return Resolve(words);
        case "random": return Random();
        default: return -1;
        }
    }

    static int Run(string name, string[] words)
    {
        switch (name) {
        case "args": foreach (string word in words) Out.WriteLine(Hexadecimal(Utf8.GetBytes(word))); return 0;
        case "env": return Env(words);
        case "cwd": Out.WriteLine(Directory.GetCurrentDirectory()); return 0;
        case "cat": return Copy(Console.OpenStandardInput(), Console.OpenStandardOutput());
        case "eof": return CountInput();
        case "lines": return Lines();
        case "out": Out.WriteLine(string.Join(" ", words)); return 0;
        case "err": Err.WriteLine(string.Join(" ", words)); return 0;
        case "exit": Out.Flush(); Environment.Exit(int.Parse(words[0])); return 0;
        case "segv": case "trap": throw new InvalidOperationException(name);
        case "overflow": return Overflow(0);
        case "wait": Ready(); Thread.Sleep(Timeout.Infinite); return 0;
        case "pid": Out.WriteLine(Process.GetCurrentProcess().Id); return 0;
        case "hostname": Out.WriteLine(Environment.MachineName); return 0;
        case "time": Out.WriteLine((long)(DateTime.UtcNow - new DateTime(1970, 1, 1)).TotalSeconds); return 0;
        case "abort": case "raise": case "ignore": case "handle": case "tty": case "winsize": case "again": case "name": case "bomb":
        case "haunt": case "ids": case "uid": case "fds": case "link": case "readlink": case "attempt": case "attempts":
            Err.WriteLine("unsupported: " + name);
            return Unsupported;
        default: return -1;
        }
    }

    static int Dispatch(string name, string[] words)
    {
        try {
            int code = Run(name, words);
            code = code == -1 ? Files(name, words) : code;
            code = code == -1 ? Load(name, words) : code;
            return code == -1 ? Usage : code;
        } catch (IOException error) {
            return Failed(name, error);
        } catch (UnauthorizedAccessException error) {
            return Failed(name, error);
        } catch (SocketException error) {
            return Failed(name, error);
        } catch (IndexOutOfRangeException) {
            return Usage;
        }
    }

    public static int Main(string[] words)
    {
        int code = Usage;
        if (words.Length > 0) {
            var rest = new string[words.Length - 1];
            Array.Copy(words, 1, rest, 0, rest.Length);
            code = Dispatch(words[0], rest);
        }
        Out.Flush();
        return code;
    }
}
