"""Boots the guest that `run` speaks of, runs the program in it, and does what it asks for.

A request is a line of JSON on a connection of its own to GUEST_CONTROL, and so is the answer ({"error": ...} if it could
not be done):
  {"do": "start", "name": N, "args": [...]}  starts tests/servers/N/run on the machine: {"id": ..., "ready": its line}
  {"do": "tell", "id": I, "line": L}         a command to it: {"answer": its line}
  {"do": "stop", "id": I}                    ends it
  {"do": "run", "argv": [...], "env": {}}    runs a program on the machine: {"code": ..., "out": ..., "err": ...}
  {"do": "plug", "id": I, "serial": S, "bus": "virtio" or "scsi", "file": F or "size": bytes}   a disk for the guest
  {"do": "grow", "id": I, "size": bytes}     the disk is larger
  {"do": "unplug", "id": I}                  takes it away, and waits until the guest has let it go
  {"do": "boot"}                             a second guest, a shell of which waits for lines
  {"do": "shell", "line": L}                 runs a line there: {"code": ..., "out": both outputs}
  {"do": "kill"}                             the second guest's power is cut
"""
import base64
import json
import os
import queue
import shlex
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
HOME = os.environ['GUEST_HOME']
HOST, CONTROL, SHELL = '10.77.0.1', 7700, 7701
LIBRARIES = HOME + '/root/usr/lib/x86_64-linux-gnu'
MODULES = ('loop', 'xfs', 'btrfs', 'nfsv3', 'nfsv4', 'rbd', 'virtio_scsi', 'sd_mod')


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Qmp:
    """QEMU's control socket: one command at a time, events kept."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(500):
            try:
                self.socket.connect(path)
                break
            except OSError:
                time.sleep(0.02)
        self.file, self.answers, self.deleted = self.socket.makefile('rw'), queue.Queue(), set()
        self.changed, self.one = threading.Condition(), threading.Lock()
        self.file.readline()
        threading.Thread(target=self._read, daemon=True).start()
        self.ask('qmp_capabilities')

    def _read(self):
        for line in self.file:
            message = json.loads(line)
            if message.get('event') == 'DEVICE_DELETED':
                with self.changed:
                    self.deleted.add(message['data'].get('device'))
                    self.changed.notify_all()
            elif 'event' not in message:
                self.answers.put(message)

    def ask(self, command, **arguments):
        with self.one:
            self.file.write(json.dumps({'execute': command, 'arguments': arguments}) + '\n')
            self.file.flush()
            answer = self.answers.get(timeout=60)
        if 'error' in answer:
            raise RuntimeError('%s: %s' % (command, answer['error']['desc']))
        return answer['return']

    def gone(self, device, seconds=30):
        with self.changed:
            if not self.changed.wait_for(lambda: device in self.deleted, seconds):
                raise RuntimeError('the guest does not let %s go' % device)
            self.deleted.discard(device)


class Guest:
    def __init__(self, name, address, memory, share, script):
        self.name, self.share, self.disks, self.plugged, self.one = name, share, {}, 0, threading.Lock()
        # One at a time is plugged or unplugged: a guest that hears of another plug while it lets a device go is told twice
        # to let that slot go, and the second time there may be a new device in it.
        self.hot = threading.Lock()
        tap, disk, path = 'tap-' + name, '%s/%s.disk' % (share, name), '%s/%s.' % (share, name)
        run('ip', 'tuntap', 'add', tap, 'mode', 'tap')
        run('ip', 'addr', 'add', HOST, 'peer', address, 'dev', tap)
        run('ip', 'link', 'set', tap, 'up')
        with open(disk, 'wb') as file:
            file.truncate(32 << 30)
        run('mkfs.ext4', '-q', '-F', '-E', 'lazy_itable_init=1,lazy_journal_init=1', disk)
        with open(path + 'sh', 'w') as file:
            file.write(script)
        environment = dict(os.environ, LD_LIBRARY_PATH=LIBRARIES, QEMU_MODULE_DIR=LIBRARIES + '/qemu')
        log = open(path + 'log', 'wb')
        # What the machine has is kept, which makes starting a program four times faster; the shared directory is looked at.
        self.files = [self._files('/', path + 'root', 'always', environment, log),
                      self._files(share, path + 'share', 'none', environment, log)]
        words = {'ip': address, 'host': HOST, 'home': HOME, 'share': share, 'run': path + 'sh'}
        self.process = subprocess.Popen(
            [HOME + '/root/usr/bin/qemu-system-x86_64', '-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '2', '-M', 'pc',
             '-m', str(memory), '-object', 'memory-backend-memfd,id=mem,size=%dM,share=on' % memory,
             '-numa', 'node,memdev=mem', '-nodefaults', '-no-reboot', '-display', 'none', '-serial', 'stdio',
             '-kernel', HOME + '/vmlinux', '-initrd', HOME + '/initrd',
             '-netdev', 'tap,id=net,script=no,downscript=no,ifname=' + tap, '-device', 'virtio-net-pci,netdev=net,romfile=',
             '-chardev', 'socket,id=root,path=' + path + 'root', '-device', 'vhost-user-fs-pci,chardev=root,tag=root',
             '-chardev', 'socket,id=share,path=' + path + 'share', '-device', 'vhost-user-fs-pci,chardev=share,tag=share',
             '-drive', 'if=none,id=own,format=raw,cache=unsafe,file=' + disk, '-device', 'virtio-blk-pci,drive=own',
             '-device', 'virtio-scsi-pci,id=scsi', '-qmp', 'unix:%sqmp,server=on,wait=off' % path,
             '-append', 'console=ttyS0 quiet loglevel=1 panic=-1 ' +
             ' '.join('guest.%s=%s' % word for word in words.items())],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        self.qmp = Qmp(path + 'qmp')

    @staticmethod
    def _files(source, path, cache, environment, log):
        process = subprocess.Popen(
            [HOME + '/root/usr/lib/qemu/virtiofsd', '--socket-path=' + path, '-o', 'source=' + source, '-o', 'cache=' + cache,
             '-o', 'sandbox=chroot', '--thread-pool-size=2', '-f'], env=environment, stdout=log, stderr=log)
        while not os.path.exists(path):
            if process.poll() is not None:
                raise RuntimeError('virtiofsd ended: see ' + log.name)
            time.sleep(0.01)
        return process

    def plug(self, id, serial, bus='virtio', file=None, size=None):
        with self.one:
            if id in self.disks:
                return
            self.plugged += 1
            # QEMU allows 31 characters.
            node = self.disks[id] = 'disk%d' % self.plugged
        if file is None:
            file = '%s/%s.raw' % (self.share, node)
            with open(file, 'xb') as disk:
                disk.truncate(size)
        self.qmp.ask('blockdev-add', **{'driver': 'raw', 'node-name': node, 'discard': 'unmap', 'file': {
            'driver': 'file', 'filename': file, 'cache': {'no-flush': True, 'direct': False}}})
        device = {'drive': node, 'id': node, 'serial': serial, 'driver': 'virtio-blk-pci'}
        if bus == 'scsi':
            device.update(driver='scsi-hd', bus='scsi.0')
        try:
            with self.hot:
                self.qmp.ask('device_add', **device)
                if bus == 'virtio':
                    self._seen(node)
        except RuntimeError:
            self.qmp.ask('blockdev-del', **{'node-name': node})
            self.disks.pop(id)
            raise

    def _seen(self, node):
        """The guest has given the device its addresses."""
        for _ in range(1000):
            found = [it for bus in self.qmp.ask('query-pci') for it in bus['devices'] if it['qdev_id'] == node]
            if found and any(region['address'] < 1 << 63 for region in found[0]['regions']):
                return
            time.sleep(0.02)
        raise RuntimeError('the guest does not see %s' % node)

    def grow(self, id, size):
        self.qmp.ask('block_resize', **{'node-name': self.disks[id], 'size': size})

    def unplug(self, id):
        with self.one:
            node = self.disks.pop(id, None)
        if node is None:
            return
        with self.hot:
            self.qmp.ask('device_del', id=node)
            self.qmp.gone(node)
        self.qmp.ask('blockdev-del', **{'node-name': node})
        if os.path.exists('%s/%s.raw' % (self.share, node)):
            os.unlink('%s/%s.raw' % (self.share, node))

    def end(self):
        for process in [self.process] + self.files:
            process.kill()
            process.wait()


class Shell:
    """Lines for the second guest, which asks for the next one when it has done the last."""

    def __init__(self):
        self.listener = socket.create_server((HOST, SHELL))
        self.one = threading.Lock()

    def run(self, line):
        with self.one:
            self.listener.settimeout(60)
            connection, _ = self.listener.accept()
            with connection, connection.makefile('rw') as file:
                connection.settimeout(120)
                file.write(line.replace('\n', ';') + '\n')
                file.flush()
                code, text = file.readline(), file.readline()
        return {'code': int(code), 'out': base64.b64decode(text).decode(errors='replace')}


class Stage:
    def __init__(self, share):
        self.share, self.scripts, self.next, self.second, self.lines = share, {}, 0, None, None
        self.one = threading.Lock()

    def start(self, name, args):
        process = subprocess.Popen(['%s/../%s/run' % (HERE, name)] + args, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   text=True, bufsize=1, env=dict(os.environ, TMPDIR=self.share))
        line = process.stdout.readline().strip()
        if not line.startswith('ready'):
            raise RuntimeError('the %s server did not start: %s' % (name, line))
        with self.one:
            self.next += 1
            self.scripts[self.next] = (process, threading.Lock())
            return {'id': self.next, 'ready': line}

    def tell(self, id, line):
        process, one = self.scripts[id]
        with one:
            process.stdin.write(line + '\n')
            process.stdin.flush()
            return {'answer': process.stdout.readline().strip()}

    def stop(self, id):
        process, _ = self.scripts.pop(id)
        process.stdin.close()
        process.wait()

    @staticmethod
    def run(argv, env=None):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              env=dict(os.environ, **(env or {})))
        return {'code': done.returncode, 'out': done.stdout, 'err': done.stderr}

    def plug(self, **disk):
        self.first.plug(**disk)

    def grow(self, **disk):
        self.first.grow(**disk)

    def unplug(self, id):
        self.first.unplug(id)

    def boot(self):
        if self.lines:
            # A guest that was killed has asked there for its next line.
            self.lines.listener.close()
        self.lines = Shell()
        lines = 'while exec 3<>/dev/tcp/%s/%d; do read -r line <&3; out=$(bash -c "$line" 2>&1 | base64 -w0; exit ${PIPESTATUS[0]}); ' \
                'printf "%%s\\n%%s\\n" $? "$out" >&3; exec 3>&-; done\n' % (HOST, SHELL)
        self.second = Guest('b', '10.77.0.3', 1024, self.share, prelude(self.share) + lines)
        threading.Thread(target=show, args=(self.second, False), daemon=True).start()

    def kill(self):
        if self.second:
            self.second.end()
            run('ip', 'link', 'del', 'tap-b')
            self.second = None

    def shell(self, line):
        return self.lines.run(line)

    def answer(self, request):
        what = request.pop('do')
        act = {'start': self.start, 'tell': self.tell, 'stop': self.stop, 'run': self.run, 'plug': self.plug, 'grow': self.grow,
               'unplug': self.unplug, 'boot': self.boot, 'shell': self.shell, 'kill': self.kill}[what]
        return act(**request) or {}


def prelude(share):
    """What a guest's shell does first. No udev: modules are loaded by name."""
    kept = {name: value for name, value in os.environ.items()
            if name.startswith(('RUST', 'CARGO', 'SOAK', 'CRASH', 'MODEL', 'KEEP', 'GUEST', 'CSI_SANITY'))}
    kept.update(GUEST_SHARE=share, SKIP_LOG=share + '/skips', HOME='/root',
                PATH='%s/root/usr/sbin:%s:/usr/sbin:/usr/bin:/sbin:/bin:%s/busybox/bin' % (HOME, os.environ['PATH'], HOME))
    lines = ['export %s=%s' % (name, shlex.quote(value)) for name, value in kept.items()]
    lines += ['for module in %s; do modprobe $module; done' % ' '.join(MODULES)]
    return '\n'.join(lines) + '\n'


def show(guest, loud):
    for line in guest.process.stdout:
        if loud:
            sys.stdout.write(line.decode(errors='replace').replace('\r', ''))
            sys.stdout.flush()


def serve(stage):
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            try:
                answer = stage.answer(json.loads(self.rfile.readline()))
            except Exception as error:
                answer = {'error': '%s: %s' % (type(error).__name__, error)}
            self.wfile.write(json.dumps(answer).encode() + b'\n')

    class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
        daemon_threads, allow_reuse_address = True, True
    threading.Thread(target=Server((HOST, CONTROL), Handler).serve_forever, daemon=True).start()


def main(command):
    share = os.environ['GUEST_DIR']
    os.chmod(share, 0o755)
    code = 1
    try:
        run('ip', 'link', 'set', 'lo', 'up')
        run('ip', 'addr', 'add', HOST + '/32', 'dev', 'lo')
        with open('/proc/sys/net/ipv4/ip_forward', 'w') as file:
            file.write('1')
        os.environ['GUEST_CONTROL'] = '%s:%d' % (HOST, CONTROL)
        stage = Stage(share)
        serve(stage)
        script = prelude(share) + 'dmesg -w >%s/a.kmsg 2>/dev/null &\ncd %s\n%s </dev/null >/dev/console 2>&1\n' \
            'echo $? >%s/a.rc\nbusybox poweroff -f -n\n' % (share, shlex.quote(os.getcwd()), shlex.join(command), share)
        stage.first = Guest('a', '10.77.0.2', int(os.environ.get('GUEST_MEMORY', 3072)), share, script)
        limit = threading.Timer(float(os.environ.get('GUEST_SECONDS', 900)), stage.first.process.kill)
        limit.start()
        show(stage.first, True)
        stage.first.process.wait()
        limit.cancel()
        try:
            with open(share + '/a.rc') as file:
                code = int(file.read())
        except (OSError, ValueError):
            print('the guest has ended early', flush=True)
        if code:
            print('the last that its kernel and QEMU said:', flush=True)
            for name in ('a.kmsg', 'a.log'):
                if os.path.exists('%s/%s' % (share, name)):
                    subprocess.run(['tail', '-n', '60', '%s/%s' % (share, name)])
        stage.kill()
        for id in list(stage.scripts):
            stage.stop(id)
    finally:
        for name, target in (('skips', os.environ.get('SKIP_LOG')), ('report.json', os.environ.get('SOAK_REPORT'))):
            if target and os.path.exists('%s/%s' % (share, name)):
                with open('%s/%s' % (share, name)) as source, open(target, 'a' if name == 'skips' else 'w') as file:
                    file.write(source.read())
    sys.exit(code)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
main(sys.argv[1:])
