"""A Nova driver whose guests are not run. A volume that is attached to one becomes a loop device, with a link named as
the guest's /dev/disk/by-id would have it: DEVICES/<server>/virtio-<the first 20 characters of the volume's id>.

Below a real guest (GUEST_CONTROL: tests/servers/kernel/stage.py) it is plugged into that one instead."""
import json
import os
import socket
import subprocess

from nova.virt import fake

DEVICES = os.environ['DEVICES']
CONTROL = os.environ.get('GUEST_CONTROL')


def ask(do, **request):
    host, port = CONTROL.split(':')
    with socket.create_connection((host, int(port))) as connection, connection.makefile('rw') as file:
        file.write(json.dumps(dict(request, do=do)) + '\n')
        file.flush()
        answer = json.loads(file.readline())
    if 'error' in answer:
        raise RuntimeError(answer['error'])


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class LoopGuests(fake.FakeDriverWithoutFakeNodes):

    @staticmethod
    def _link(connection, instance):
        return os.path.join(DEVICES, instance.uuid, 'virtio-' + connection['serial'][:20])

    def _plug(self, connection, instance):
        link = self._link(connection, instance)
        if 'device_path' not in connection.get('data', {}) or os.path.islink(link):
            return
        if CONTROL:
            return ask('plug', id=connection['serial'], serial=connection['serial'], file=connection['data']['device_path'])
        os.makedirs(os.path.dirname(link), exist_ok=True)
        os.symlink(run('losetup', '--find', '--show', connection['data']['device_path']), link)

    def _unplug(self, connection, instance):
        if CONTROL:
            return ask('unplug', id=connection['serial'])
        link = self._link(connection, instance)
        if os.path.islink(link):
            device = os.readlink(link)
            os.unlink(link)
            run('losetup', '--detach', device)

    def _each(self, info, act, instance):
        for entry in (info or {}).get('block_device_mapping', []):
            act(entry['connection_info'], instance)

    def spawn(self, context, instance, *args, block_device_info=None, **kwargs):
        self._each(block_device_info, self._plug, instance)
        return super().spawn(context, instance, *args, block_device_info=block_device_info, **kwargs)

    def destroy(self, context, instance, network_info, block_device_info=None, *args, **kwargs):
        self._each(block_device_info, self._unplug, instance)
        return super().destroy(context, instance, network_info, block_device_info, *args, **kwargs)

    def attach_volume(self, context, connection, instance, mountpoint, *args, **kwargs):
        self._plug(connection, instance)
        return super().attach_volume(context, connection, instance, mountpoint, *args, **kwargs)

    def detach_volume(self, context, connection, instance, mountpoint, *args, **kwargs):
        self._unplug(connection, instance)
        return super().detach_volume(context, connection, instance, mountpoint, *args, **kwargs)

    def extend_volume(self, context, connection, instance, requested_size):
        if CONTROL:
            return ask('grow', id=connection['serial'], size=requested_size)
        link = self._link(connection, instance)
        if os.path.islink(link):
            run('losetup', '--set-capacity', os.readlink(link))
