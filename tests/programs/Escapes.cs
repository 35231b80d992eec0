/* Tries to get out of a sandbox with what the CLR brings, and with the C library of the host that it may call.

   usage: Escapes all|NAME,NAME... VICTIM PORT SECRET ABSTRACT WRITE READ    one line for each: name, TAB, "held" or "escaped", TAB, why
          Escapes start PROGRAM WORDS...                                     run a program of the host's own kind

   The words are those of escape.c. */

using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.IO.MemoryMappedFiles;
using System.Linq;
using System.Net;
using System.Net.NetworkInformation;
using System.Net.Sockets;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.RegularExpressions;

public static class Escapes
{
    static readonly Dictionary<string, Func<object>> Attempts = new Dictionary<string, Func<object>>();
    static readonly List<string> Names = new List<string>();
    static readonly string Program = Assembly.GetExecutingAssembly().Location;
    static int victim, port;
    static string secret, hidden, write, read, given;

    [DllImport("libc", SetLastError = true)] static extern long syscall(long number, long a, long b, long c, long d, long e);
    [DllImport("libc", SetLastError = true)] static extern long syscall(long number, byte[] a, long b, long c, long d, long e);
    [DllImport("libc", SetLastError = true)] static extern long syscall(long number, long a, byte[] b, long c, long d, long e);
    [DllImport("libc", SetLastError = true)] static extern long syscall(long number, byte[] a, byte[] b, long c, long d, long e);
    [DllImport("libc", SetLastError = true)] static extern int mount(string source, string target, string kind, ulong flags, IntPtr data);
    [DllImport("libc", SetLastError = true)] static extern int umount2(string target, int flags);
    [DllImport("libc", SetLastError = true)] static extern int unshare(int flags);
    [DllImport("libc", SetLastError = true)] static extern int setns(int file, int kind);
    [DllImport("libc", SetLastError = true)] static extern int chroot(string path);
    [DllImport("libc", SetLastError = true)] static extern int open(string path, int flags, int mode);
    [DllImport("libc", SetLastError = true)] static extern int kill(int pid, int signal);
    [DllImport("libc", SetLastError = true)] static extern long ptrace(long what, int pid, IntPtr address, IntPtr data);
    [DllImport("libc", SetLastError = true)] static extern int setuid(int uid);
    [DllImport("libc", SetLastError = true)] static extern int setresuid(int real, int effective, int saved);
    [DllImport("libc", SetLastError = true)] static extern int setgroups(ulong count, int[] groups);
    [DllImport("libc", SetLastError = true)] static extern int mknod(string path, uint mode, ulong device);
    [DllImport("libc", SetLastError = true)] static extern int symlink(string to, string path);
    [DllImport("libc", SetLastError = true)] static extern int link(string from, string to);
    [DllImport("libc", SetLastError = true)] static extern int rename(string from, string to);
    [DllImport("libc", SetLastError = true)] static extern int unlink(string path);
    [DllImport("libc", SetLastError = true)] static extern int chmod(string path, uint mode);
    [DllImport("libc", SetLastError = true)] static extern int chown(string path, int user, int group);
    [DllImport("libc", SetLastError = true)] static extern int truncate(string path, long length);
    [DllImport("libc", SetLastError = true)] static extern int setxattr(string path, string name, byte[] value, ulong size, int flags);
    [DllImport("libc", SetLastError = true)] static extern int sethostname(string name, ulong length);
    [DllImport("libc", SetLastError = true)] static extern int socket(int family, int kind, int protocol);
    [DllImport("libc", SetLastError = true)] static extern int connect(int peer, byte[] address, int length);
    [DllImport("libc", SetLastError = true)] static extern int setpriority(int which, int who, int priority);
    [DllImport("libc", SetLastError = true)] static extern int prctl(int what, ulong a, ulong b, ulong c, ulong d);
    [DllImport("libc", SetLastError = true)] static extern int ioctl(int file, ulong request, byte[] data);
    [DllImport("libc", SetLastError = true)] static extern int setrlimit(int which, ulong[] limits);
    [DllImport("libc", SetLastError = true)] static extern int clock_settime(int clock, long[] time);

    /* The result of a call of the C library. */
    static object Done(long result)
    {
        if (result == -1)
            throw new IOException("errno " + Marshal.GetLastWin32Error());
        return result;
    }

    static object Text(string path)
    {
        using (var file = File.OpenRead(path))
        {
            var bytes = new byte[64];
            return Encoding.ASCII.GetString(bytes, 0, file.Read(bytes, 0, 64));
        }
    }

    static object Listed(string path) { return string.Join(" ", Directory.GetFileSystemEntries(path).Take(3)); }

    static object Put(string path, FileMode mode)
    {
        using (var file = new FileStream(path, mode, FileAccess.Write))
            file.WriteByte((byte)'x');
        return "written";
    }

    static string Mine()
    {
        File.WriteAllText(write + "/mine", "mine");
        return write + "/mine";
    }

    static object Linked(string place, string to, string wanted)
    {
        unlink(place);
        Done(symlink(to, place));
        return Text(wanted);
    }

    static object Mapped()
    {
        using (var map = MemoryMappedFile.CreateFromFile(given, FileMode.Open))
        using (var view = map.CreateViewAccessor())
            view.Write(0, (byte)'x');
        return "mapped";
    }

    static object Act(Action action)
    {
        action();
        return "done";
    }

    static object Everybody()
    {
        var found = Process.GetProcesses().Where(one => one.Id > 2000).ToList();
        if (found.Count == 0)
            throw new InvalidOperationException("only our own processes are there");
        return found.Count;
    }

    static object Connects(string host, int number)
    {
        using (var peer = new TcpClient(host.Contains(":") ? AddressFamily.InterNetworkV6 : AddressFamily.InterNetwork))
        {
            var done = peer.BeginConnect(IPAddress.Parse(host), number, null, null);
            if (!done.AsyncWaitHandle.WaitOne(2000))
                throw new TimeoutException("no answer");
            peer.EndConnect(done);
            peer.GetStream().WriteByte((byte)'x');
            return "connected";
        }
    }

    static object Sends(string host, int number, bool answered)
    {
        using (var peer = new Socket(AddressFamily.InterNetwork, SocketType.Dgram, ProtocolType.Udp))
        {
            var place = new IPEndPoint(IPAddress.Parse(host), number);
            peer.EnableBroadcast = true;
            peer.ReceiveTimeout = 300;
            if (!answered)
                return peer.SendTo(new byte[1], place);
            peer.Connect(place);
            peer.Send(new byte[1]);
            try
            {
                return peer.Receive(new byte[1]);
            }
            catch (SocketException error)
            {
                if (error.SocketErrorCode == SocketError.TimedOut || error.SocketErrorCode == SocketError.WouldBlock)
                    return "nobody refused it";
                throw;
            }
        }
    }

    static object Local(string path)
    {
        int peer = socket(1, 1, 0);
        var address = new byte[2 + path.Length + (path[0] == '\0' ? 0 : 1)];
        address[0] = 1;
        Encoding.ASCII.GetBytes(path, 0, path.Length, address, 2);
        return Done(connect(peer, address, address.Length));
    }

    static object Taken()
    {
        var server = new TcpListener(IPAddress.Loopback, port);
        server.ExclusiveAddressUse = true;
        try
        {
            server.Start();
        }
        catch (SocketException error)
        {
            return error.Message;
        }
        server.Stop();
        throw new IOException("the port is free: a network of its own");
    }

    static object Interfaces()
    {
        var found = NetworkInterface.GetAllNetworkInterfaces().Where(one => one.Name != "lo").ToList();
        if (found.Count == 0)
            throw new IOException("only lo");
        return found.Count;
    }

    static object InitKilled()
    {
        Done(kill(1, 9));
        Done(kill(1, 0));
        throw new IOException("it lives");
    }

    static object Starts(string program, string words)
    {
        var wanted = new ProcessStartInfo(program, words) { UseShellExecute = false, RedirectStandardOutput = true, RedirectStandardError = true, RedirectStandardInput = true };
        using (var one = Process.Start(wanted))
        {
            one.StandardInput.Close();
            var output = one.StandardOutput.ReadToEnd() + one.StandardError.ReadToEnd();
            one.WaitForExit();
            if (one.ExitCode != 0)
                throw new IOException(output);
            return output;
        }
    }

    static void Try(string name, Func<object> attempt)
    {
        Names.Add(name);
        Attempts[name] = attempt;
    }

    static void Tool(string name, string line)
    {
        var words = line.Split(new[] { ' ' }, 2);
        var program = new[] { "/usr/bin/", "/bin/", "/usr/sbin/", "/sbin/" }.Select(place => place + words[0]).FirstOrDefault(File.Exists);
        if (program != null)
            Try("tool_" + name, () => Starts(program, words.Length > 1 ? words[1] : ""));
    }

    static void Files()
    {
        Try("absolute", () => Text(secret));
        Try("dotdot", () => Text(read + "/../../../../.." + secret));
        Try("dotdot_relative", () => Text("../../../../.." + secret));
        Try("by_url", () => new WebClient().DownloadString("file://" + secret));
        Try("root_of_self", () => Text("/proc/self/root" + secret));
        Try("root_of_init", () => Text("/proc/1/root" + secret));
        Try("root_of_victim", () => Text("/proc/" + victim + "/root" + secret));
        Try("directory_of_init", () => Listed("/proc/1/cwd/"));
        Try("descriptors_of_init", () => Listed("/proc/1/fd"));
        Try("link_made", () => Linked(write + "/out", secret, write + "/out"));
        Try("link_of_directory", () => Linked(write + "/root", "/", write + "/root" + secret));
        Try("link_found", () => Text(write + "/link/secret"));
        Try("link_in_data", () => Text(read + "/link/secret"));
        Try("link_written", () => Put(write + "/link/new", FileMode.Create));
        Try("hard_link", () => Done(link(secret, write + "/hard")));
        Try("moved_out", () => Act(() => File.Move(Mine(), write + "/link/mine")));
        Try("moved_in", () => Act(() => File.Move(secret, write + "/secret")));
        Try("copied_in", () => Act(() => File.Copy(secret, write + "/copy", true)));
        Try("others_in_tmp", () => Listed(Path.GetDirectoryName(secret)));
        Try("assembly", () => Assembly.LoadFile(secret));
        Try("shadow", () => Text("/etc/shadow"));
        Try("home_of_root", () => Listed("/root"));
        Try("machine", () => Text("/etc/machine-id"));
        Try("var", () => Listed("/var/lib"));
        Try("sys", () => Listed("/sys/kernel"));
        Try("root_written", () => Put("/new", FileMode.Create));
        Try("system_written", () => Put("/usr/bin/new", FileMode.Create));
        Try("mono_written", () => Put("/usr/lib/mono/4.5/new", FileMode.Create));
        Try("mscorlib_written", () => Put("/usr/lib/mono/4.5/mscorlib.dll", FileMode.Open));
        Try("configuration_written", () => Put("/etc/mono/config", FileMode.Open));
        Try("program_written", () => Put(Program, FileMode.Open));
        Try("program_replaced", () => Done(rename(Mine(), Program)));
        Try("beside_program", () => Put(Program + ".new", FileMode.Create));
        Try("read_only_written", () => Put(given, FileMode.Open));
        Try("read_only_appended", () => Put(given, FileMode.Append));
        Try("read_only_made", () => Put(read + "/new", FileMode.Create));
        Try("read_only_directory", () => Directory.CreateDirectory(read + "/new"));
        Try("read_only_removed", () => Act(() => File.Delete(given)));
        Try("read_only_renamed", () => Done(rename(given, read + "/other")));
        Try("read_only_mode", () => Done(chmod(given, 0x1FF)));
        Try("read_only_owner", () => Done(chown(given, 1, 1)));
        Try("read_only_times", () => Act(() => File.SetLastWriteTime(given, DateTime.Now)));
        Try("read_only_attribute", () => Done(setxattr(given, "user.x", new byte[1], 1, 0)));
        Try("read_only_cut", () => Done(truncate(given, 0)));
        Try("read_only_mapped", Mapped);
        Try("read_only_linked", () => Done(link(given, read + "/hard")));
        Try("set_uid", () => { Done(chown(Mine(), 0, 0)); return Done(chmod(write + "/mine", 0x9ED)); });
    }

    static void Processes()
    {
        Try("set_uid_of_caller", () => Done(chmod(Mine(), 0x9ED)));
        Try("set_uid_when_made", () => Done(open(write + "/made", 0x41, 0x9ED)));
        Try("init_environ", () => Text("/proc/1/environ"));
        Try("init_memory", () => Text("/proc/1/mem"));
        Try("init_maps", () => Text("/proc/1/maps"));
        Try("init_killed", InitKilled);
        Try("init_traced", () => Done(ptrace(0x4206, 1, IntPtr.Zero, IntPtr.Zero)));
        Try("victim_environ", () => Text("/proc/" + victim + "/environ"));
        Try("victim_memory", () => Text("/proc/" + victim + "/mem"));
        Try("victim_found", () => Process.GetProcessById(victim));
        Try("victim_killed", () => Act(() => Process.GetProcessById(victim).Kill()));
        Try("victim_signalled", () => Done(kill(victim, 0)));
        Try("victim_traced", () => Done(ptrace(16, victim, IntPtr.Zero, IntPtr.Zero)));
        Try("victim_descriptor", () => Done(syscall(434, victim, 0, 0, 0, 0)));
        Try("every_process", Everybody);
        Try("group_priority", () => Done(setpriority(1, 0, 19)));
        Try("own_priority", () => Done(setpriority(0, 0, -20)));
        Try("more_processes", () => Done(setrlimit(6, new[] { ulong.MaxValue, ulong.MaxValue })));
        Try("more_descriptors", () => Done(setrlimit(7, new[] { 1UL << 20, 1UL << 20 })));
        Try("core_file", () => Done(setrlimit(4, new[] { 4096UL, 4096UL })));
        Try("less_likely_killed", () => Act(() => File.WriteAllText("/proc/self/oom_score_adj", "-900")));
    }

    static void Network()
    {
        Try("loopback", () => Connects("127.0.0.1", port));
        Try("loopback_other", () => Connects("127.0.0.2", port));
        Try("loopback_6", () => Connects("::1", port));
        Try("loopback_datagram", () => Sends("127.0.0.1", port, true));
        Try("by_url_http", () => new WebClient().DownloadString("http://127.0.0.1:" + port + "/"));
        Try("metadata", () => Connects("169.254.169.254", 80));
        Try("internet", () => Connects("192.0.2.1", 443));
        Try("internet_6", () => Connects("2001:db8::1", 443));
        Try("datagram", () => Sends("192.0.2.1", 53, false));
        Try("broadcast", () => Sends("255.255.255.255", 53, false));
        Try("multicast", () => Sends("224.0.0.251", 53, false));
        Try("name", () => Dns.GetHostEntry("example.org").AddressList[0]);
        Try("port_of_the_host", Taken);
        Try("interfaces", Interfaces);
        Try("unix_socket", () => Local(Path.GetDirectoryName(secret) + "/socket"));
        Try("unix_by_link", () => Local(write + "/link/socket"));
        Try("abstract", () => Local("\0" + hidden));
        Try("bus", () => Local("/run/dbus/system_bus_socket"));
        Try("raw", () => Done(socket(2, 3, 1)));
        Try("packet", () => Done(socket(17, 3, 0)));
        Try("vsock", () => Done(socket(40, 1, 0)));
        Try("audit", () => Done(socket(16, 3, 9)));
        Try("algorithms", () => Done(socket(38, 5, 0)));
    }

    static void Kernel()
    {
        Try("c_mount", () => Done(mount("none", "/tmp", "tmpfs", 0, IntPtr.Zero)));
        Try("c_bind", () => Done(mount("/", "/tmp", null, 0x5000, IntPtr.Zero)));
        Try("c_umount", () => Done(umount2("/proc", 2)));
        Try("c_unshare_user", () => Done(unshare(0x10000000)));
        Try("c_unshare_mounts", () => Done(unshare(0x20000)));
        Try("c_unshare_network", () => Done(unshare(0x40000000)));
        Try("c_setns", () => Done(setns((int)(long)Done(open("/proc/1/ns/mnt", 0, 0)), 0)));
        Try("c_setns_own", () => Done(setns((int)(long)Done(open("/proc/self/ns/user", 0, 0)), 0)));
        Try("c_chroot", () => Done(chroot("/tmp")));
        Try("c_pivot", () => Done(syscall(155, new byte[] { 47, 0 }, new byte[] { 47, 0 }, 0, 0, 0)));
        Try("c_setuid", () => Done(setuid(0)));
        Try("c_setresuid", () => Done(setresuid(1, 1, 1)));
        Try("c_setgroups", () => Done(setgroups(1, new int[1])));
        Try("c_capset", () => Done(syscall(126, new byte[] { 0x22, 5, 8, 0x20, 0, 0, 0, 0 }, Enumerable.Repeat((byte)255, 24).ToArray(), 0, 0, 0)));
        Try("c_keyctl", () => Done(syscall(250, 0, -3, 1, 0, 0)));
        Try("c_bpf", () => Done(syscall(321, 5, new byte[72], 72, 0, 0)));
        Try("c_perf", () => Done(syscall(298, new byte[112], 0, -1, -1, 0)));
        Try("c_io_uring", () => Done(syscall(425, 1, new byte[256], 0, 0, 0)));
        Try("c_userfaultfd", () => Done(syscall(323, 1, 0, 0, 0, 0)));
        Try("c_handle", () => Done(syscall(304, open(read, 0, 0), new byte[] { 8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0 }, 0, 0, 0)));
        Try("c_open_tree", () => Done(syscall(428, -100, new byte[] { 47, 0 }, 1, 0, 0)));
        Try("c_module", () => Done(syscall(175, new byte[8], 1, 0, 0, 0)));
        Try("c_syslog", () => Done(syscall(103, 3, new byte[4096], 4096, 0, 0)));
        Try("c_settime", () => Done(clock_settime(0, new[] { 1L, 0L })));
        Try("c_hostname", () => Done(sethostname("x", 1)));
        Try("c_ports", () => Done(syscall(172, 3, 0, 0, 0, 0)));
        Try("c_vectors", () => Done(syscall(310, 1, new byte[16], 1, 0, 0)));
        Try("c_kcmp", () => Done(syscall(312, 1, 2, 0, 0, 0)));
        Try("c_terminal_input", () => Done(ioctl(0, 0x5412, new byte[1])));
        Try("c_privileges", () => Done(prctl(38, 0, 0, 0, 0)));
        Try("device_made", () => Done(mknod("/tmp/disk", 0x6180, 0x800)));
        Try("memory_device", () => Text("/dev/mem"));
        Try("kernel_core", () => Text("/proc/kcore"));
        Try("kvm", () => Put("/dev/kvm", FileMode.Open));
        Try("disk", () => Text("/dev/vda"));
        Try("sysrq", () => Put("/proc/sysrq-trigger", FileMode.Open));
        Try("core_pattern", () => Put("/proc/sys/kernel/core_pattern", FileMode.Open));
        Try("cgroup", () => Directory.CreateDirectory("/sys/fs/cgroup/new"));
        Tool("su", "su -c id");
        Tool("mount", "mount -t tmpfs none /tmp");
        Tool("unshare", "unshare -Ur id");
        Tool("nsenter", "nsenter -t 1 -m -- id");
        Tool("setpriv", "setpriv --reuid 0 --clear-groups id");
        Tool("chroot", "chroot / id");
        Tool("kill", "kill -9 " + victim);
        Tool("cat", "cat " + secret);
        Tool("dmesg", "dmesg");
        Tool("date", "date -s 2001-01-01");
    }

    static void Judge(string name)
    {
        string verdict, why;
        try
        {
            why = Convert.ToString(Attempts[name]());
            verdict = "escaped";
        }
        catch (Exception error)
        {
            why = error.GetType().Name + ": " + error.Message;
            verdict = "held";
        }
        why = Regex.Replace(why, "[\\s\\p{Cc}]+", " ");
        Console.Out.Write(name + "\t" + verdict + "\t" + why.Substring(0, Math.Min(why.Length, 200)) + "\n");
        Console.Out.Flush();
    }

    public static int Main(string[] words)
    {
        if (words[0] == "start")
        {
            var line = string.Join(" ", words.Skip(2).Select(word => "\"" + word + "\""));
            using (var one = Process.Start(new ProcessStartInfo(words[1], line) { UseShellExecute = false }))
            {
                one.WaitForExit();
                return one.ExitCode;
            }
        }
        victim = int.Parse(words[1]);
        port = int.Parse(words[2]);
        secret = words[3];
        hidden = words[4];
        write = words[5];
        read = words[6];
        given = read + "/file";
        Files();
        Processes();
        Network();
        Kernel();
        foreach (var name in words[0] == "all" ? Names.ToArray() : words[0].Split(','))
            Judge(name);
        return 0;
    }
}
