"""A lake for the benchmark: laked as a child, and the control socket spoken directly, so that no
process start-up is in any figure (the protocol is in fs/commands/control.h)."""
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time

from processes import gone, note


class Failed(Exception):
    pass


class Lake:
    """One lake directory and its mount. Used with `with`: leaves nothing mounted."""

    def __init__(self, bin_directory, directory, mountpoint, store_url=None, new=False, config=None):
        """`store_url` is joined, or with `new` gets the lake; `config` goes into lake.json."""
        self.bin = bin_directory
        self.directory = directory
        self.mountpoint = mountpoint
        self.daemon = None
        self.memory = {"VmHWM": 0, "RssAnon": 0}
        self._watch = None
        command = [f"{bin_directory}/lakectl", "-q"]
        if store_url and not new:
            command += ["clone", store_url, directory]
        else:
            command += ["init", *(["--store", store_url] if store_url else []), directory]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if config:
            path = os.path.join(directory, "lake.json")
            with open(path) as file:
                settings = json.load(file)
            with open(path, "w") as file:
                json.dump({**settings, **config}, file)
        os.makedirs(mountpoint, exist_ok=True)

    def __enter__(self):
        self.mount()
        return self

    def __exit__(self, *_):
        self.umount()

    @property
    def store(self):
        return os.path.join(self.directory, "store")

    def path(self, *parts):
        return os.path.join(self.mountpoint, *parts)

    # -- the daemon --

    def mount(self):
        reader, writer = os.pipe()
        log = open(os.path.join(self.directory, "laked.log"), "ab")
        # A session of its own: Ctrl-C must reach the benchmark, which then unmounts.
        self.daemon = subprocess.Popen(
            [f"{self.bin}/laked", "--lake", self.directory, "--ready-fd", str(writer), "--",
             self.mountpoint], pass_fds=[writer], stdout=log, stderr=log, start_new_session=True)
        os.close(writer)
        log.close()
        note(self.daemon)
        with os.fdopen(reader) as pipe:
            answer = pipe.readline().strip()
        if answer != "ready":
            self.daemon.wait()
            gone(self.daemon)
            self.daemon = None
            raise Failed(f"laked did not start: {answer}")
        self._watch = threading.Thread(target=self._watch_memory, args=(self.daemon,), daemon=True)
        self._watch.start()

    def umount(self):
        if not self.daemon:
            return
        self._note_memory(self.server())
        for attempt in range(50):
            try:
                self.call("umount")
                break
            except (Failed, OSError):
                if attempt == 49 or self.daemon.poll() is not None:
                    break
                time.sleep(0.1)
        try:
            self.daemon.wait(120)
        except subprocess.TimeoutExpired:
            self.daemon.send_signal(signal.SIGKILL)
            self.daemon.wait()
        gone(self.daemon)
        if os.path.ismount(self.mountpoint):
            subprocess.run(["umount", "--lazy", self.mountpoint], check=False)
        self.daemon = None

    def remount(self):
        self.umount()
        self.mount()

    def settle(self):
        """Wait until laked has nothing left to do in the background, at most two minutes."""
        def ticks():
            with open(f"/proc/{self.server()}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])
        for _ in range(240):
            before = ticks()
            time.sleep(0.5)
            if ticks() - before <= 2:
                break

    def server(self):
        """The process that serves; self.daemon is its supervisor."""
        with open(os.path.join(self.directory, "lock")) as lock:
            return int(lock.read())

    def _note_memory(self, pid):
        try:
            with open(f"/proc/{pid}/status") as status:
                for line in status:
                    name = line.split(":")[0]
                    if name in self.memory:
                        size = int(line.split()[1]) * 1024
                        self.memory[name] = max(self.memory[name], size)
        except OSError:
            pass

    def _watch_memory(self, daemon):
        while daemon.returncode is None:
            self._note_memory(self.server())
            time.sleep(0.1)

    # -- the control socket --

    def call(self, command, **arguments):
        """The reply's object; a refusal raises Failed. Items that came in pieces are counted
        under "<list>_count"."""
        request = json.dumps({"command": command, **arguments}).encode()
        directory = os.open(self.directory, os.O_PATH | os.O_DIRECTORY)
        counts = {}
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(f"/proc/self/fd/{directory}/control.sock")
                connection.sendall(struct.pack("<I", len(request)) + request)
                while True:
                    frame = json.loads(self._receive(connection, struct.unpack(
                        "<I", self._receive(connection, 4))[0]))
                    if "items" in frame:
                        name = frame["items"]["list"]
                        counts[name] = counts.get(name, 0) + len(frame["items"]["items"])
                    if "reply" in frame:
                        break
        finally:
            os.close(directory)
        reply = frame["reply"]
        if "error" in reply:
            raise Failed(f"{command} {arguments}: {reply['error']['message']}")
        for name, value in list(reply.items()):
            if isinstance(value, list):
                reply[f"{name}_count"] = counts.get(name, 0) + len(value)
        return reply

    @staticmethod
    def _receive(connection, length):
        data = b""
        while len(data) < length:
            piece = connection.recv(min(1 << 20, length - len(data)))
            if not piece:
                raise Failed("laked closed the connection")
            data += piece
        return data

    def timed(self, command, **arguments):
        start = time.perf_counter()
        reply = self.call(command, **arguments)
        return time.perf_counter() - start, reply

    # -- the embedded store --

    def stored(self):
        """Objects and bytes in the store's directory ("~..." is its own bookkeeping)."""
        objects = size = 0
        for folder, folders, files in os.walk(self.store):
            folders[:] = [name for name in folders if not name.startswith("~")]
            for name in files:
                if name.startswith("~"):
                    continue
                objects += 1
                size += os.stat(os.path.join(folder, name)).st_size
        return objects, size
