"""A Cinder driver whose volumes and snapshots are sparse files in one directory."""
import os
import subprocess

from cinder import exception, interface
from cinder.volume import configuration, driver
from oslo_config import cfg

OPTIONS = [cfg.StrOpt('files_dir', help='The directory of the files.'),
           cfg.IntOpt('files_capacity_gb', default=100000, help='What the pool says it has.')]
cfg.CONF.register_opts(OPTIONS, group=configuration.SHARED_CONF_GROUP)


@interface.volumedriver
class FileVolumes(driver.BaseVD):
    VERSION = '1'

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTIONS)

    @staticmethod
    def get_driver_options():
        return OPTIONS

    def check_for_setup_error(self):
        os.makedirs(self.configuration.files_dir, exist_ok=True)

    def _path(self, kind, id):
        return os.path.join(self.configuration.files_dir, '%s-%s' % (kind, id))

    def local_path(self, volume):
        return self._path('volume', volume.name_id)

    def _snapshot(self, snapshot):
        return self._path('snapshot', snapshot.id)

    def _grow(self, path, gib):
        if os.path.getsize(path) < gib << 30:
            os.truncate(path, gib << 30)

    def _fill(self, volume, source):
        target = self.local_path(volume)
        done = subprocess.run(['cp', '--sparse=always', '--reflink=auto', source, target], capture_output=True, text=True)
        if done.returncode:
            raise exception.VolumeBackendAPIException(data=done.stderr)
        self._grow(target, volume.size)

    @staticmethod
    def _remove(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    def create_volume(self, volume):
        # A display name can ask for a failure, or for slowness, in tests.
        if 'please-fail' in (volume.display_name or ''):
            raise exception.VolumeBackendAPIException(data='asked to fail by its name')
        with open(self.local_path(volume), 'xb') as file:
            file.truncate(volume.size << 30)

    def delete_volume(self, volume):
        self._remove(self.local_path(volume))

    def extend_volume(self, volume, gib):
        self._grow(self.local_path(volume), gib)

    def create_snapshot(self, snapshot):
        done = subprocess.run(['cp', '--sparse=always', '--reflink=auto', self.local_path(snapshot.volume),
                               self._snapshot(snapshot)], capture_output=True, text=True)
        if done.returncode:
            raise exception.VolumeBackendAPIException(data=done.stderr)

    def delete_snapshot(self, snapshot):
        self._remove(self._snapshot(snapshot))

    def create_volume_from_snapshot(self, volume, snapshot):
        self._fill(volume, self._snapshot(snapshot))

    def create_cloned_volume(self, volume, source):
        self._fill(volume, self.local_path(source))

    def clone_image(self, context, volume, location, meta, service):
        return None, False

    def retype(self, context, volume, new_type, diff, host):
        return True, None

    def ensure_export(self, context, volume):
        pass

    def create_export(self, context, volume, connector):
        pass

    def remove_export(self, context, volume):
        pass

    def initialize_connection(self, volume, connector):
        return {'driver_volume_type': 'local', 'data': {'device_path': self.local_path(volume)}}

    def terminate_connection(self, volume, connector, **kwargs):
        pass

    def _update_volume_stats(self):
        total = self.configuration.files_capacity_gb
        self._stats = {'volume_backend_name': self.configuration.volume_backend_name, 'vendor_name': 'tests',
                       'driver_version': self.VERSION, 'storage_protocol': 'local', 'total_capacity_gb': total,
                       'free_capacity_gb': total, 'reserved_percentage': 0, 'QoS_support': False,
                       'multiattach': True, 'thin_provisioning_support': False, 'online_extend_support': True}
