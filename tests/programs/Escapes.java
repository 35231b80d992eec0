/* Tries to get out of a sandbox with what Java brings.

   usage: Escapes all|NAME,NAME... VICTIM PORT SECRET ABSTRACT WRITE READ    one line for each: name, TAB, "held" or "escaped", TAB, why
          Escapes start PROGRAM WORDS...                                     run a program of the host's own kind

   The words are those of escape.c. */

import java.io.File;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.lang.management.ManagementFactory;
import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.MulticastSocket;
import java.net.NetworkInterface;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketAddress;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.FileTime;
import java.nio.file.attribute.PosixFilePermissions;
import java.nio.file.attribute.UserDefinedFileAttributeView;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;

public final class Escapes {
    private static final Map<String, Callable<Object>> ATTEMPTS = new LinkedHashMap<>();
    private static long victim;
    private static int port;
    private static String secret;
    private static Path write;
    private static Path read;
    private static final Path PROGRAM = Path.of(System.getProperty("java.class.path"));
    private static final String HOME = System.getProperty("java.home");

    private static Object text(String path) throws IOException {
        try (var file = Files.newInputStream(Path.of(path))) {
            return new String(file.readNBytes(64), StandardCharsets.ISO_8859_1);
        }
    }

    private static Object names(String path) throws IOException {
        try (var entries = Files.list(Path.of(path))) {
            return entries.limit(3).collect(java.util.stream.Collectors.toList());
        }
    }

    private static Object put(Path path, StandardOpenOption... how) throws IOException {
        return Files.write(path, new byte[] {'x'}, how);
    }

    private static Object made(Path path) throws IOException {
        return put(path, StandardOpenOption.CREATE, StandardOpenOption.WRITE);
    }

    private static Object written(Path path) throws IOException {
        return put(path, StandardOpenOption.WRITE);
    }

    private static Path mine() throws IOException {
        return Files.write(write.resolve("mine"), new byte[] {'m'});
    }

    private static Path given() {
        return read.resolve("file");
    }

    private static Object linked(Path place, Path to) throws IOException {
        Files.deleteIfExists(place);
        return Files.createSymbolicLink(place, to);
    }

    private static Object mapped() throws IOException {
        try (var channel = FileChannel.open(given(), StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            return channel.map(FileChannel.MapMode.READ_WRITE, 0, 4).put(0, (byte) 'x');
        }
    }

    private static Object random() throws IOException {
        try (var file = new RandomAccessFile(given().toFile(), "rw")) {
            file.setLength(0);
            return "cut";
        }
    }

    private static Object told(boolean done) throws IOException {
        if (!done)
            throw new IOException("false");
        return true;
    }

    private static Object process(long pid) {
        return ProcessHandle.of(pid).orElseThrow().destroyForcibly();
    }

    private static Object processes() {
        var found = ProcessHandle.allProcesses().filter(one -> one.pid() > 2000).collect(java.util.stream.Collectors.toList());
        if (found.isEmpty())
            throw new IllegalStateException("only our own processes are there");
        return found;
    }

    private static Object connects(String host, int number) throws IOException {
        try (var peer = new Socket()) {
            peer.connect(new InetSocketAddress(host, number), 2000);
            peer.getOutputStream().write('x');
            return peer;
        }
    }

    private static Object sends(String host, int number, boolean answered) throws IOException {
        try (var peer = new DatagramSocket()) {
            peer.setBroadcast(true);
            peer.setSoTimeout(300);
            if (answered)
                peer.connect(InetAddress.getByName(host), number);
            peer.send(new DatagramPacket(new byte[] {'x'}, 1, InetAddress.getByName(host), number));
            if (answered)
                try {
                    peer.receive(new DatagramPacket(new byte[1], 1));
                } catch (java.net.SocketTimeoutException error) {
                    return "nobody refused it";
                }
            return "sent";
        }
    }

    private static Object local(String path) throws Exception {
        // Java 16 and later
        Class<?> address = Class.forName("java.net.UnixDomainSocketAddress");
        SocketAddress place = (SocketAddress) address.getMethod("of", String.class).invoke(null, path);
        return SocketChannel.open(place).write(ByteBuffer.wrap(new byte[] {'x'}));
    }

    private static Object taken() throws IOException {
        // Where the port is taken this is the network of the host.
        try (var server = new ServerSocket()) {
            server.setReuseAddress(false);
            server.bind(new InetSocketAddress("127.0.0.1", port));
        } catch (java.net.BindException error) {
            return error;
        }
        throw new IOException("the port is free: a network of its own");
    }

    private static Object interfaces() throws IOException {
        var found = NetworkInterface.networkInterfaces().filter(one -> !one.getName().equals("lo")).collect(java.util.stream.Collectors.toList());
        if (found.isEmpty())
            throw new IOException("only lo");
        return found;
    }

    private static Object multicast() throws IOException {
        try (var peer = new MulticastSocket()) {
            peer.joinGroup(new InetSocketAddress("224.0.0.251", 5353), NetworkInterface.getByName("eth0"));
            peer.send(new DatagramPacket(new byte[1], 1, InetAddress.getByName("224.0.0.251"), 5353));
            return "sent";
        }
    }

    private static Object attached(String pid) throws Exception {
        Class<?> machine = Class.forName("com.sun.tools.attach.VirtualMachine");
        return machine.getMethod("attach", String.class).invoke(null, pid);
    }

    private static Object dumped() throws Exception {
        var server = ManagementFactory.getPlatformMBeanServer();
        var name = new javax.management.ObjectName("com.sun.management:type=HotSpotDiagnostic");
        server.invoke(name, "dumpHeap", new Object[] {given() + ".hprof", true}, new String[] {"java.lang.String", "boolean"});
        return "dumped";
    }

    private static Object starts(String... words) throws Exception {
        var builder = new ProcessBuilder(words).redirectErrorStream(true).redirectInput(new File("/dev/null"));
        builder.environment().put("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
        Process one = builder.start();
        String output = new String(one.getInputStream().readNBytes(200), StandardCharsets.UTF_8);
        if (!one.waitFor(20, TimeUnit.SECONDS) || one.exitValue() != 0)
            throw new IOException(output);
        return output;
    }

    private static void tool(String name, String line) {
        String[] words = line.split(" ");
        for (String place : List.of("/usr/bin/", "/bin/", "/usr/sbin/", "/sbin/"))
            if (Files.isExecutable(Path.of(place + words[0]))) {
                words[0] = place + words[0];
                ATTEMPTS.put("tool_" + name, () -> starts(words));
                return;
            }
    }

    private static void files() {
        ATTEMPTS.put("absolute", () -> text(secret));
        ATTEMPTS.put("dotdot", () -> text(read + "/../../../../.." + secret));
        ATTEMPTS.put("dotdot_relative", () -> text("../../../../.." + secret));
        ATTEMPTS.put("by_url", () -> URI.create("file://" + secret).toURL().openStream().read());
        ATTEMPTS.put("by_file_class", () -> new java.io.FileReader(secret).read());
        ATTEMPTS.put("real_path", () -> Path.of(secret).toRealPath());
        ATTEMPTS.put("root_of_self", () -> text("/proc/self/root" + secret));
        ATTEMPTS.put("root_of_init", () -> text("/proc/1/root" + secret));
        ATTEMPTS.put("root_of_victim", () -> text("/proc/" + victim + "/root" + secret));
        ATTEMPTS.put("root_of_thread", () -> text("/proc/thread-self/root" + secret));
        ATTEMPTS.put("directory_of_init", () -> names("/proc/1/cwd/"));
        ATTEMPTS.put("descriptors_of_init", () -> names("/proc/1/fd"));
        ATTEMPTS.put("link_made", () -> text(linked(write.resolve("out"), Path.of(secret)).toString()));
        ATTEMPTS.put("link_of_directory", () -> text(linked(write.resolve("root"), Path.of("/")) + secret));
        ATTEMPTS.put("link_found", () -> text(write + "/link/secret"));
        ATTEMPTS.put("link_in_data", () -> text(read + "/link/secret"));
        ATTEMPTS.put("link_written", () -> made(write.resolve("link/new")));
        ATTEMPTS.put("hard_link", () -> Files.createLink(write.resolve("hard"), Path.of(secret)));
        ATTEMPTS.put("moved_out", () -> Files.move(mine(), write.resolve("link/mine")));
        ATTEMPTS.put("moved_in", () -> Files.move(Path.of(secret), write.resolve("secret")));
        ATTEMPTS.put("copied_in", () -> Files.copy(Path.of(secret), write.resolve("copy"), StandardCopyOption.REPLACE_EXISTING));
        ATTEMPTS.put("others_in_tmp", () -> names(Path.of(secret).getParent().toString()));
        ATTEMPTS.put("shadow", () -> text("/etc/shadow"));
        ATTEMPTS.put("home_of_root", () -> names("/root"));
        ATTEMPTS.put("machine", () -> text("/etc/machine-id"));
        ATTEMPTS.put("var", () -> names("/var/lib"));
        ATTEMPTS.put("sys", () -> names("/sys/kernel"));
        ATTEMPTS.put("root_written", () -> made(Path.of("/new")));
        ATTEMPTS.put("system_written", () -> made(Path.of("/usr/bin/new")));
        ATTEMPTS.put("java_written", () -> made(Path.of(HOME, "lib/server/new")));
        ATTEMPTS.put("archive_written", () -> written(Path.of(HOME, "lib/server/classes.jsa")));
        ATTEMPTS.put("modules_written", () -> written(Path.of(HOME, "lib/modules")));
        ATTEMPTS.put("program_written", () -> written(PROGRAM));
        ATTEMPTS.put("program_replaced", () -> Files.move(mine(), PROGRAM, StandardCopyOption.REPLACE_EXISTING));
        ATTEMPTS.put("beside_program", () -> made(Path.of(PROGRAM + ".new")));
    }

    private static void readOnly() {
        ATTEMPTS.put("read_only_written", () -> written(given()));
        ATTEMPTS.put("read_only_appended", () -> put(given(), StandardOpenOption.APPEND));
        ATTEMPTS.put("read_only_made", () -> made(read.resolve("new")));
        ATTEMPTS.put("read_only_directory", () -> Files.createDirectory(read.resolve("new")));
        ATTEMPTS.put("read_only_removed", () -> Files.deleteIfExists(given()));
        ATTEMPTS.put("read_only_renamed", () -> Files.move(given(), read.resolve("other")));
        ATTEMPTS.put("read_only_mode", () -> Files.setPosixFilePermissions(given(), PosixFilePermissions.fromString("rwxrwxrwx")));
        ATTEMPTS.put("read_only_owner", () -> Files.setAttribute(given(), "unix:uid", 1));
        ATTEMPTS.put("read_only_times", () -> Files.setLastModifiedTime(given(), FileTime.fromMillis(1)));
        ATTEMPTS.put("read_only_file_times", () -> told(given().toFile().setLastModified(1000)));
        ATTEMPTS.put("read_only_attribute", () -> Files.getFileAttributeView(given(), UserDefinedFileAttributeView.class, LinkOption.NOFOLLOW_LINKS)
            .write("x", ByteBuffer.wrap(new byte[1])));
        ATTEMPTS.put("read_only_random", Escapes::random);
        ATTEMPTS.put("read_only_mapped", Escapes::mapped);
        ATTEMPTS.put("read_only_linked", () -> Files.createLink(read.resolve("hard"), given()));
        ATTEMPTS.put("read_only_temporary", () -> Files.createTempFile(read, "new", ""));
        ATTEMPTS.put("read_only_archive", () -> {
            try (var made = FileSystems.newFileSystem(URI.create("jar:file:" + read + "/new.zip"), Map.of("create", "true"))) {
                return put(made.getPath("x"), StandardOpenOption.CREATE);
            }
        });
        ATTEMPTS.put("read_only_dump", Escapes::dumped);
        ATTEMPTS.put("set_uid", () -> Files.setAttribute(Files.setAttribute(mine(), "unix:uid", 0), "unix:mode", 04755));
    }

    private static void processesAndKernel() {
        ATTEMPTS.put("set_uid_of_caller", () -> Files.setAttribute(mine(), "unix:mode", 04755));
        ATTEMPTS.put("init_environ", () -> text("/proc/1/environ"));
        ATTEMPTS.put("init_memory", () -> text("/proc/1/mem"));
        ATTEMPTS.put("init_maps", () -> text("/proc/1/maps"));
        ATTEMPTS.put("init_killed", () -> told(ProcessHandle.of(1).orElseThrow().destroyForcibly()));
        ATTEMPTS.put("init_attached", () -> attached("1"));
        ATTEMPTS.put("victim_environ", () -> text("/proc/" + victim + "/environ"));
        ATTEMPTS.put("victim_memory", () -> text("/proc/" + victim + "/mem"));
        ATTEMPTS.put("victim_command", () -> text("/proc/" + victim + "/cmdline"));
        ATTEMPTS.put("victim_found", () -> ProcessHandle.of(victim).orElseThrow().info());
        ATTEMPTS.put("victim_killed", () -> process(victim));
        ATTEMPTS.put("victim_attached", () -> attached(Long.toString(victim)));
        ATTEMPTS.put("self_attached", () -> attached(Long.toString(ProcessHandle.current().pid())));
        ATTEMPTS.put("every_process", Escapes::processes);
        ATTEMPTS.put("less_likely_killed", () -> Files.writeString(Path.of("/proc/self/oom_score_adj"), "-900"));
        ATTEMPTS.put("memory_device", () -> text("/dev/mem"));
        ATTEMPTS.put("kernel_core", () -> text("/proc/kcore"));
        ATTEMPTS.put("kvm", () -> written(Path.of("/dev/kvm")));
        ATTEMPTS.put("disk", () -> text("/dev/vda"));
        ATTEMPTS.put("sysrq", () -> written(Path.of("/proc/sysrq-trigger")));
        ATTEMPTS.put("core_pattern", () -> written(Path.of("/proc/sys/kernel/core_pattern")));
        ATTEMPTS.put("overcommit", () -> written(Path.of("/proc/sys/vm/overcommit_memory")));
        ATTEMPTS.put("cgroup", () -> Files.createDirectory(Path.of("/sys/fs/cgroup/new")));
        ATTEMPTS.put("library_by_path", () -> {
            System.load(secret);
            return "loaded";
        });
    }

    private static void network() {
        ATTEMPTS.put("loopback", () -> connects("127.0.0.1", port));
        ATTEMPTS.put("loopback_other", () -> connects("127.0.0.2", port));
        ATTEMPTS.put("loopback_any", () -> connects("0.0.0.0", port));
        ATTEMPTS.put("loopback_6", () -> connects("::1", port));
        ATTEMPTS.put("loopback_datagram", () -> sends("127.0.0.1", port, true));
        ATTEMPTS.put("loopback_channel", () -> SocketChannel.open(new InetSocketAddress("127.0.0.1", port)));
        ATTEMPTS.put("by_url_http", () -> URI.create("http://127.0.0.1:" + port + "/").toURL().openStream());
        ATTEMPTS.put("metadata", () -> connects("169.254.169.254", 80));
        ATTEMPTS.put("internet", () -> connects("192.0.2.1", 443));
        ATTEMPTS.put("internet_6", () -> connects("2001:db8::1", 443));
        ATTEMPTS.put("datagram", () -> sends("192.0.2.1", 53, false));
        ATTEMPTS.put("metadata_datagram", () -> sends("169.254.169.254", 53, false));
        ATTEMPTS.put("broadcast", () -> sends("255.255.255.255", 53, false));
        ATTEMPTS.put("multicast", Escapes::multicast);
        ATTEMPTS.put("reachable", () -> told(InetAddress.getByName("192.0.2.1").isReachable(300)));
        ATTEMPTS.put("name", () -> InetAddress.getByName("example.org"));
        ATTEMPTS.put("port_of_the_host", Escapes::taken);
        ATTEMPTS.put("interfaces", Escapes::interfaces);
        ATTEMPTS.put("unix_socket", () -> local(Path.of(secret).resolveSibling("socket").toString()));
        ATTEMPTS.put("unix_by_link", () -> local(write + "/link/socket"));
        ATTEMPTS.put("bus", () -> local("/run/dbus/system_bus_socket"));
    }

    private static void tools() {
        tool("su", "su -c id");
        tool("sudo", "sudo -n id");
        tool("mount", "mount -t tmpfs none /tmp");
        tool("bind", "mount --bind / /tmp");
        tool("umount", "umount -l /proc");
        tool("unshare", "unshare -Ur id");
        tool("unshare_mounts", "unshare -m id");
        tool("nsenter", "nsenter -t 1 -m -- id");
        tool("setpriv", "setpriv --reuid 0 --clear-groups id");
        tool("chroot", "chroot / id");
        tool("kill", "kill -9 " + victim);
        tool("renice", "renice -n -19 -p 1");
        tool("prlimit", "prlimit --pid 1 --nofile=1000000");
        tool("date", "date -s 2001-01-01");
        tool("mknod", "mknod /tmp/disk b 8 0");
        tool("dmesg", "dmesg");
        tool("cat", "cat " + secret);
        tool("hostname", "hostname x");
        tool("network_down", "ip link set lo down");
        tool("trace", "strace -p 1");
    }

    private static void judge(String name) {
        String verdict;
        String why;
        try {
            why = String.valueOf(ATTEMPTS.get(name).call());
            verdict = "escaped";
        } catch (Throwable error) {
            why = error instanceof ReflectiveOperationException ? String.valueOf(error.getCause()) : error.toString();
            verdict = "held";
        }
        why = why.replaceAll("[\\s\\p{Cntrl}]+", " ");
        System.out.println(name + "\t" + verdict + "\t" + why.substring(0, Math.min(why.length(), 200)));
        System.out.flush();
    }

    public static void main(String[] words) throws Exception {
        if (words[0].equals("start"))
            System.exit(new ProcessBuilder(Arrays.asList(words).subList(1, words.length)).inheritIO().start().waitFor());
        victim = Long.parseLong(words[1]);
        port = Integer.parseInt(words[2]);
        secret = words[3];
        write = Path.of(words[5]);
        read = Path.of(words[6]);
        files();
        readOnly();
        processesAndKernel();
        network();
        tools();
        for (String name : words[0].equals("all") ? List.copyOf(ATTEMPTS.keySet()) : List.of(words[0].split(",")))
            judge(name);
        System.exit(0);
    }
}
