/* The twin of probe.c for Java: the same commands, words and codes. What Java can not say answers "unsupported" with code 65. */

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.PrintStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketException;
import java.net.UnknownHostException;
import java.nio.charset.StandardCharsets;
import java.nio.file.AccessDeniedException;
import java.nio.file.DirectoryNotEmptyException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.TreeMap;

public final class Probe {
    private static final PrintStream OUT = new PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out), false, StandardCharsets.UTF_8);
    private static final PrintStream ERR = new PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.err), true, StandardCharsets.UTF_8);
    private static final int UNSUPPORTED = 65;
    private static final int USAGE = 64;
    private static final int MIB = 1 << 20;

    private static void say(String line) {
        OUT.print(line + "\n");
    }

    private static void ready() {
        say("ready");
        OUT.flush();
    }

    private static int unsupported(String what) {
        ERR.print("unsupported: " + what + "\n");
        return UNSUPPORTED;
    }

    private static int failed(String what, Throwable why) {
        ERR.print(what + ": " + reason(why) + " (" + why + ")\n");
        return 1;
    }

    private static String reason(Throwable why) {
        String text = String.valueOf(why.getMessage());
        if (why instanceof AccessDeniedException || text.contains("Permission denied") || text.contains("Read-only") || text.contains("not permitted"))
            return "denied";
        if (why instanceof NoSuchFileException || why instanceof UnknownHostException || text.contains("Not a directory"))
            return "missing";
        if (why instanceof FileAlreadyExistsException || why instanceof DirectoryNotEmptyException)
            return "exists";
        if (text.contains("Is a directory"))
            return "directory";
        if (text.contains("No space") || text.contains("too large"))
            return "full";
        if (text.contains("Too many") || text.contains("temporarily"))
            return "many";
        if (why instanceof SocketException)
            return "unreachable";
        return "other";
    }

    private static String hexadecimal(byte[] bytes) {
        StringBuilder text = new StringBuilder();
        for (byte one : bytes)
            text.append(String.format("%02x", one));
        return text.toString();
    }

    private static int args(String[] words) {
        for (String word : words)
            say(hexadecimal(word.getBytes(StandardCharsets.UTF_8)));
        return 0;
    }

    private static int env(String[] words) {
        if (words.length > 0) {
            String value = System.getenv(words[0]);
            if (value != null)
                say(value);
            return value == null ? 1 : 0;
        }
        new TreeMap<>(System.getenv()).forEach((key, value) -> say(key + "=" + value));
        return 0;
    }

    private static void copy(InputStream from, OutputStream to) throws IOException {
        byte[] block = new byte[65536];
        for (int got; (got = from.read(block)) > 0;) {
            to.write(block, 0, got);
            to.flush();
        }
    }

    private static int eof() throws IOException {
        byte[] block = new byte[65536];
        long total = 0;
        for (int got; (got = System.in.read(block)) > 0;)
            total += got;
        say(Long.toString(total));
        return 0;
    }

    private static int lines() throws IOException {
        var reader = new java.io.BufferedReader(new java.io.InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = reader.readLine()) != null;) {
            say("got " + line);
            OUT.flush();
        }
        return 0;
    }

    private static int sleepForEver() throws InterruptedException {
        ready();
        Thread.sleep(Long.MAX_VALUE);
        return 0;
    }

    private static int handle(String[] words) throws InterruptedException {
        var caught = new java.util.concurrent.LinkedBlockingQueue<Integer>();
        for (String name : List.of("TERM", "INT", "HUP"))
            sun.misc.Signal.handle(new sun.misc.Signal(name), signal -> caught.add(signal.getNumber()));
        ready();
        say("caught " + caught.take());
        return words.length > 0 ? Integer.parseInt(words[0]) : 42;
    }

    private static int overflow(int depth) {
        return overflow(depth + 1) + 1;
    }

    private static int write(String[] words, StandardOpenOption... how) throws IOException {
        Files.write(Path.of(words[0]), words[1].getBytes(StandardCharsets.UTF_8), how);
        return 0;
    }

    private static int list(String[] words) throws IOException {
        try (var entries = Files.list(Path.of(words[0]))) {
            entries.map(entry -> entry.getFileName().toString()).sorted().forEach(Probe::say);
        }
        return 0;
    }

    private static int kind(String[] words) throws IOException {
        Path path = Path.of(words[0]);
        var what = Files.readAttributes(path, java.nio.file.attribute.BasicFileAttributes.class, java.nio.file.LinkOption.NOFOLLOW_LINKS);
        String name = what.isDirectory() ? "directory" : what.isSymbolicLink() ? "link" : what.isRegularFile() ? "file" : "other";
        say(name.equals("file") ? "file " + what.size() : name);
        return 0;
    }

    private static int opens(String[] words) {
        var held = new ArrayList<InputStream>();
        try {
            while (held.size() < Integer.parseInt(words[0]))
                held.add(Files.newInputStream(Path.of(words[1])));
        } catch (IOException error) {
            // The limit: how many there are is what is asked.
        }
        say(Integer.toString(held.size()));
        return 0;
    }

    private static int fill(String[] words) throws IOException {
        int taken = 0;
        byte[] piece = new byte[MIB];
        try (OutputStream file = Files.newOutputStream(Path.of(words[0]))) {
            for (; taken < Integer.parseInt(words[1]); taken++)
                file.write(piece);
        } catch (IOException error) {
            say(Integer.toString(taken));
            return failed("fill", error);
        }
        say(Integer.toString(taken));
        return 0;
    }

    private static int tmp() throws IOException {
        String place = System.getenv("TMPDIR");
        Path file = Path.of(place == null ? "/tmp" : place, "probe.tmp");
        Files.writeString(file, "kept");
        say(Files.readString(file));
        Files.delete(file);
        return 0;
    }

    private static int spin(String[] words) {
        long until = words.length > 0 ? System.nanoTime() + Long.parseLong(words[0]) * 1_000_000_000L : Long.MAX_VALUE;
        ready();
        long rounds = 0;
        while (System.nanoTime() < until)
            rounds++;
        return rounds < 0 ? 1 : 0;
    }

    private static int eat(String[] words) {
        var held = new ArrayList<byte[]>();
        int wanted = Integer.parseInt(words[0]);
        while (held.size() < wanted)
            held.add(new byte[MIB]);
        say("ate " + held.size());
        return 0;
    }

    private static int flood(String[] words) {
        long left = words.length > 0 && !words[0].equals("0") ? Long.parseLong(words[0]) : Long.MAX_VALUE;
        byte[] block = new byte[65536];
        Arrays.fill(block, (byte) 'x');
        while (left > 0 && !OUT.checkError()) {
            int piece = (int) Math.min(left, block.length);
            OUT.write(block, 0, piece);
            left -= piece;
        }
        return OUT.checkError() ? 1 : 0;
    }

    private static int fork(String[] words) throws InterruptedException {
        int started = 0;
        try {
            for (; started < Integer.parseInt(words[0]); started++) {
                Thread sleeper = new Thread(null, () -> {
                    try {
                        Thread.sleep(Long.MAX_VALUE);
                    } catch (InterruptedException error) {
                        Thread.currentThread().interrupt();
                    }
                }, "sleeper", 65536);
                sleeper.setDaemon(true);
                sleeper.start();
            }
        } catch (OutOfMemoryError error) {
            // Java's word for a thread that it could not start.
        }
        say("started " + started);
        OUT.flush();
        Thread.sleep(1000);
        return 0;
    }

    private static int threads(String[] words) throws InterruptedException {
        int wanted = Integer.parseInt(words[0]);
        int[] cells = new int[wanted];
        var all = new ArrayList<Thread>();
        for (int i = 0; i < wanted; i++) {
            int cell = i;
            all.add(new Thread(() -> cells[cell] = mixed(1000 + cell)));
            all.get(i).start();
        }
        for (Thread one : all)
            one.join();
        say(String.format("%08x", Arrays.stream(cells).sum()));
        return 0;
    }

    private static int mixed(int rounds) {
        long state = 88172645463325252L;
        for (int i = 0; i < rounds; i++) {
            state ^= state << 13;
            state ^= state >>> 7;
            state ^= state << 17;
            state *= 0x9E3779B97F4A7C15L;
        }
        return (int) (state >>> 32) ^ (int) state;
    }

    private static int primes() {
        byte[] composite = new byte[MIB];
        int sum = 0;
        for (int i = 2; i < MIB; i++) {
            if (composite[i] != 0)
                continue;
            sum = sum * 31 + i;
            for (int at = i * 2; at < MIB; at += i)
                composite[at] = 1;
        }
        return sum;
    }

    private static int product() {
        int size = 160;
        int[][] a = new int[size][size];
        int[][] b = new int[size][size];
        int sum = 0;
        for (int i = 0; i < size * size; i++) {
            a[i / size][i % size] = i * (int) 2654435761L;
            b[i / size][i % size] = i ^ 0x5bd1e995;
        }
        for (int i = 0; i < size; i++)
            for (int j = 0; j < size; j++) {
                int cell = 0;
                for (int k = 0; k < size; k++)
                    cell += a[i][k] * b[k][j];
                sum = sum * 33 + cell;
            }
        return sum;
    }

    private static int compute(String[] words) {
        int sum = 0;
        int rounds = words.length > 0 ? Integer.parseInt(words[0]) : 1;
        for (int i = 0; i < rounds; i++)
            sum = sum * (int) 2654435761L + (mixed(1000000) ^ primes() ^ product());
        say(String.format("%08x", sum));
        return 0;
    }

    private static int fds() throws IOException {
        try (var entries = Files.list(Path.of("/proc/self/fd"))) {
            entries.map(entry -> {
                try {
                    return Files.readSymbolicLink(entry).toString();
                } catch (IOException error) {
                    return "";
                }
            }).filter(name -> !name.isEmpty() && !name.startsWith("/proc/") && !name.startsWith("pipe:")).sorted().forEach(Probe::say);
        }
        return 0;
    }

    private static int random() {
        byte[] bytes = new byte[8];
        new SecureRandom().nextBytes(bytes);
        say(hexadecimal(bytes));
        return 0;
    }

    private static int connect(String[] words) throws IOException {
        try (Socket peer = new Socket(words[0], Integer.parseInt(words[1]))) {
            String text = words.length > 2 ? words[2] : "hello";
            peer.getOutputStream().write((text + "\n").getBytes(StandardCharsets.UTF_8));
            peer.shutdownOutput();
            copy(peer.getInputStream(), OUT);
        }
        return 0;
    }

    private static int listen(String[] words) throws IOException {
        try (ServerSocket door = new ServerSocket()) {
            door.bind(new java.net.InetSocketAddress("0.0.0.0", Integer.parseInt(words[0])));
            ready();
            try (Socket peer = door.accept()) {
                copy(peer.getInputStream(), peer.getOutputStream());
            }
        }
        return 0;
    }

    private static int resolve(String[] words) throws IOException {
        for (InetAddress found : InetAddress.getAllByName(words[0]))
            say(found.getHostAddress());
        return 0;
    }

    private static int orphan() throws IOException {
        new ProcessBuilder("/bin/sleep", "600").inheritIO().start();
        return 0;
    }

    /* Loads a library of the system, as a hostile one would be: code that the virtual machine does not watch. */
    private static int library(String[] words) {
        System.load(words[0]);
        say("loaded");
        return 0;
    }

    /* Asks for the door by which tools enter a running Java: a file, and SIGQUIT to the process. */
    private static int attach() throws IOException, InterruptedException {
        long pid = ProcessHandle.current().pid();
        Files.write(Path.of("/tmp/.attach_pid" + pid), new byte[0]);
        new ProcessBuilder("/bin/kill", "-QUIT", Long.toString(pid)).start().waitFor();
        for (int i = 0; i < 10; i++) {
            if (Files.exists(Path.of("/tmp/.java_pid" + pid))) {
                say("attached");
                return 0;
            }
            Thread.sleep(50);
        }
        say("refused");
        return 0;
    }

    private static int files(String name, String[] words) throws IOException {
        switch (name) {
            case "read":
                try (InputStream file = Files.newInputStream(Path.of(words[0]))) {
                    copy(file, OUT);
                }
                return 0;
            case "write": return write(words);
            case "append": return write(words, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
            case "list": return list(words);
            case "rename": Files.move(Path.of(words[0]), Path.of(words[1]), StandardCopyOption.REPLACE_EXISTING); return 0;
            case "remove": Files.delete(Path.of(words[0])); return 0;
            case "mkdir": Files.createDirectory(Path.of(words[0])); return 0;
            case "link": Files.createSymbolicLink(Path.of(words[1]), Path.of(words[0])); return 0;
            case "readlink": say(Files.readSymbolicLink(Path.of(words[0])).toString()); return 0;
            case "size": say(Long.toString(Files.size(Path.of(words[0])))); return 0;
            case "kind": return kind(words);
            case "opens": return opens(words);
            case "fill": return fill(words);
            case "tmp": return tmp();
            default: return -1;
        }
    }

    private static int load(String name, String[] words) throws Exception {
        switch (name) {
            case "sleep": ready(); Thread.sleep(Long.parseLong(words[0])); return 0;
            case "spin": return spin(words);
            case "eat": return eat(words);
            case "flood": return flood(words);
            case "fork": return fork(words);
            case "threads": return threads(words);
            case "compute": return compute(words);
            case "orphan": return orphan();
            case "library": return library(words);
            case "attach": return attach();
            case "connect": return connect(words);
            case "listen": return listen(words);
            case "resolve": return resolve(words);
            default: return -1;
        }
    }

    private static int run(String name, String[] words) throws Exception {
        switch (name) {
            case "args": return args(words);
            case "env": return env(words);
            case "cwd": say(Path.of("").toAbsolutePath().toString()); return 0;
            case "cat": copy(System.in, OUT); return 0;
            case "eof": return eof();
            case "lines": return lines();
            case "out": say(String.join(" ", words)); return 0;
            case "err": ERR.print(String.join(" ", words) + "\n"); return 0;
            case "exit": return Integer.parseInt(words[0]);
            case "segv": case "trap": throw new Error(name);
            case "overflow": return overflow(0);
            case "handle": return handle(words);
            case "wait": return sleepForEver();
            case "fds": return fds();
            case "pid": say(Long.toString(ProcessHandle.current().pid())); return 0;
            case "uid": say(Files.getAttribute(Path.of("/proc/self"), "unix:uid").toString()); return 0;
            case "hostname": say(Files.readString(Path.of("/proc/sys/kernel/hostname")).strip()); return 0;
            case "time": say(Long.toString(System.currentTimeMillis() / 1000)); return 0;
            case "random": return random();
            case "abort": case "raise": case "ignore": case "tty": case "winsize": case "again": case "name": case "bomb":
            case "haunt": case "ids": case "attempt": case "attempts":
                return unsupported(name);
            default: return -1;
        }
    }

    private static int dispatch(String name, String[] words) throws Exception {
        try {
            int code = run(name, words);
            code = code == -1 && !name.equals("exit") ? files(name, words) : code;
            code = code == -1 && !name.equals("exit") ? load(name, words) : code;
            return code == -1 && !name.equals("exit") ? USAGE : code;
        } catch (UnknownHostException | SocketException | FileSystemException error) {
            return failed(name, error);
        } catch (ArrayIndexOutOfBoundsException error) {
            return USAGE;
        }
    }

    public static void main(String[] words) throws Exception {
        int code = words.length == 0 ? USAGE : dispatch(words[0], Arrays.copyOfRange(words, 1, words.length));
        OUT.flush();
        System.exit(code);
    }
}
