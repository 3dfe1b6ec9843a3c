"""Runs one OpenStack project in one process: all of its services, with threads and messages in memory.

serve.py NAME PORT, with its configuration in the directory CONFIG. NAME: keystone, placement, cinder, nova, or network,
which answers what Nova asks Neutron with nothing."""
import faulthandler
import os
import shlex
import signal
import sys
import threading

NAME, PORT, ETC, ADDRESS = sys.argv[1], int(sys.argv[2]), os.environ['CONFIG'], os.environ['ADDRESS']
for project in ('KEYSTONE', 'PLACEMENT', 'NOVA'):
    os.environ['OS_%s_CONFIG_DIR' % project] = ETC
os.environ['OS_NOVA_CONFIG_FILES'] = 'nova-api-paste.ini;nova.conf'
os.environ['OS_CINDER_DISABLE_EVENTLET_PATCHING'] = '1'
os.environ['OS_NOVA_DISABLE_EVENTLET_PATCHING'] = '1'
sys.argv = [NAME]
faulthandler.register(signal.SIGUSR1)
running = []


def one_writer():
    """SQLite answers "database is locked" when two threads write; here one at a time holds a transaction."""
    import sqlalchemy as sa
    from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite as Dialect
    locks, owners, depths = {}, {}, threading.local()

    @sa.event.listens_for(sa.engine.Engine, 'begin')
    def begin(connection):
        if connection.dialect.name != 'sqlite' or 'in_transaction' in connection.info:
            return
        lock = locks.setdefault(str(connection.engine.url), threading.RLock())
        depth = depths.__dict__.setdefault('of', {})
        key = id(connection.connection.dbapi_connection)
        if key not in owners and lock.acquire(timeout=30):
            owners[key] = lock
            depth[id(lock)] = depth.get(id(lock), 0) + 1
            if depth[id(lock)] == 1:
                connection.exec_driver_sql('BEGIN IMMEDIATE')
                connection.info['in_transaction'] = True

    def releasing(name):
        original = getattr(Dialect, name)

        def call(self, connection, *args):
            try:
                return original(self, connection, *args)
            finally:
                lock = owners.pop(id(connection), None)
                if lock:
                    try:
                        lock.release()
                        depths.of[id(lock)] -= 1
                    except RuntimeError:
                        print('a lock was released by another thread', flush=True)
        setattr(Dialect, name, call)
    for name in ('do_commit', 'do_rollback', 'do_close', 'do_terminate'):
        releasing(name)


def keystone():
    from keystone.wsgi.api import application
    return application


def placement():
    from placement.wsgi.api import application
    return application


def cinder():
    sys.argv = ['cinder', '--config-file', ETC + '/cinder.conf']
    from cinder import monkey_patch
    monkey_patch.patch(backend='threading')
    from cinder.wsgi.api import application
    import os_brick
    from cinder import service, utils
    from oslo_config import cfg
    from oslo_privsep import priv_context
    conf = cfg.CONF
    # cinder.cmd.volume, which would register it, cannot be imported any more.
    conf.register_opt(cfg.StrOpt('cluster'))
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    os_brick.setup(conf)
    # The tests are root: what needs that is done here, and not by a helper behind sudo.
    import cinder.privsep
    import os_brick.privileged
    for privileged in (cinder.privsep.sys_admin_pctxt, os_brick.privileged.default):
        privileged.set_client_mode(False)

    class Service(service.Service):
        def report_state(self):
            # An attribute of the class there: two services in one process would write over each other's.
            service.Service.service_id = self.origin_service_id
            super().report_state()

    for backend in conf.enabled_backends:
        conf.register_opt(cfg.StrOpt('backend_host'), group=backend)
        running.append(Service.create(host='%s@%s' % (conf.host, backend), service_name=backend,
                                      binary='cinder-volume', coordination=True))
        running[-1].start()
    running.append(Service.create(binary='cinder-backup', coordination=True, service_name='backup'))
    running[-1].start()
    # The scheduler's start waits for what the volume services report, so it is last.
    running.append(Service.create(binary='cinder-scheduler'))
    running[-1].start()
    return application


def nova():
    from nova import monkey_patch
    monkey_patch.patch(backend='threading')
    import nova.virt
    nova.virt.__path__.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'plugins/nova_virt'))
    from nova.wsgi.osapi_compute import application
    import nova.conf
    import os_brick
    import os_vif
    from nova import context, objects, service, utils
    from nova.compute import rpcapi as compute
    from nova.conductor import rpcapi as conductor
    from nova.objects import host_mapping
    from nova.scheduler import rpcapi as scheduler
    from oslo_privsep import priv_context
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    os_brick.setup(nova.conf.CONF)
    os_vif.initialize()
    for what in (dict(binary='nova-conductor', topic=conductor.RPC_TOPIC),
                 dict(binary='nova-scheduler', topic=scheduler.RPC_TOPIC),
                 dict(binary='nova-compute', topic=compute.RPC_TOPIC, topic_alt=compute.RPC_TOPIC_ALT)):
        running.append(service.Service.create(**what))
        running[-1].start()
    host_mapping.discover_hosts(context.get_admin_context())
    return application


def network():
    import json
    root = {'versions': [{'id': 'v2.0', 'status': 'CURRENT',
                          'links': [{'rel': 'self', 'href': 'http://%s:%d/v2.0/' % (ADDRESS, PORT)}]}]}

    def application(environment, start):
        last = environment['PATH_INFO'].rstrip('/').split('/')[-1]
        start('200 OK', [('Content-Type', 'application/json')])
        return [json.dumps(root if not last else {last.replace('-', '_'): []}).encode()]
    return application


one_writer()
application = {f.__name__: f for f in (keystone, placement, cinder, nova, network)}[NAME]()
from cheroot import wsgi  # noqa: E402, after the projects have patched what they patch
server = wsgi.Server((ADDRESS, PORT), application, numthreads=8, request_queue_size=128)
ended = threading.Event()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: ended.set())
threading.Thread(target=server.start, daemon=True).start()
ended.wait()
os._exit(0)
