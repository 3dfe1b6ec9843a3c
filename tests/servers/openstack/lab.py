"""Prepares and runs OpenStack for tests; called by `install` and `run`, whose heads say how.

lab.py template HOME; lab.py run HOME DIR ADDRESS"""
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import uuid

HERE = os.path.dirname(os.path.abspath(__file__))
SERVICES = ('keystone', 'placement', 'cinder', 'network', 'nova')
# The ports that the template's catalog has; `run` writes its own in their place.
TEMPLATE_PORTS = dict(zip(SERVICES, range(15001, 15006)))


def authtoken(c, user):
    return '''
[keystone_authtoken]
www_authenticate_uri = {keystone}
service_token_roles = service
service_token_roles_required = true
{login}'''.format(keystone=c['keystone'], login=login(c, user))


def login(c, user):
    return '''auth_url = {keystone}
auth_type = password
username = {user}
password = svc
project_name = service
user_domain_id = default
project_domain_id = default
region_name = RegionOne
'''.format(keystone=c['keystone'], user=user)


def database(c, name, section='database'):
    return '[%s]\nconnection = sqlite:///%s/db/%s.db\nsqlite_synchronous = false\n' % (section, c['dir'], name)


def keystone_conf(c):
    return '''[DEFAULT]
log_file = {dir}/log/keystone.log
public_endpoint = http://{address}:{port}/
[token]
provider = fernet
expiration = 3600
[fernet_tokens]
key_repository = {dir}/fernet
[credential]
key_repository = {dir}/credential
[identity]
password_hash_rounds = 4
'''.format(dir=c['dir'], address=c['address'], port=c['ports']['keystone']) + database(c, 'keystone')


def placement_conf(c):
    return '[DEFAULT]\nlog_file = %s/log/placement.log\n[api]\nauth_strategy = keystone\n' % c['dir'] + \
        database(c, 'placement', 'placement_database') + authtoken(c, 'placement')


def cinder_conf(c):
    return '''[DEFAULT]
host = lab
log_file = {dir}/log/cinder.log
transport_url = fake://
state_path = {dir}/state/cinder
api_paste_config = {dir}/etc/cinder-api-paste.ini
resource_query_filters_file = {dir}/etc/resource_filters.json
auth_strategy = keystone
enabled_backends = files
default_volume_type = __DEFAULT__
service_down_time = 100000
periodic_fuzzy_delay = 0
scheduler_driver_init_wait_time = 5
quota_volumes = 5000
quota_snapshots = 5000
quota_gigabytes = 20000
glance_api_servers = http://{address}:1
quota_backups = 1000
quota_backup_gigabytes = 5000
backup_driver = cinder.backup.drivers.posix.PosixBackupDriver
backup_posix_path = {dir}/backups
backup_file_size = 33554432
backup_compression_algorithm = none
[files]
volume_driver = file_volumes.FileVolumes
volume_backend_name = files
files_dir = {dir}/volumes
[oslo_concurrency]
lock_path = {dir}/lock/cinder
[coordination]
backend_url = file://{dir}/lock/cinder
[service_user]
send_service_user_token = true
{login}[nova]
{login}'''.format(dir=c['dir'], address=c['address'], login=login(c, 'cinder')) + database(c, 'cinder') + authtoken(c, 'cinder')


def nova_conf(c):
    mine = login(c, 'nova')
    return '''[DEFAULT]
host = lab
log_file = {dir}/log/nova.log
transport_url = fake://
state_path = {dir}/state/nova
compute_driver = loop_guests.LoopGuests
service_down_time = 100000
sync_power_state_interval = -1
heal_instance_info_cache_interval = -1
[api]
auth_strategy = keystone
[oslo_concurrency]
lock_path = {dir}/lock/nova
[wsgi]
api_paste_config = {dir}/etc/nova-api-paste.ini
[cinder]
catalog_info = block-storage:cinder:publicURL
{mine}[placement]
{mine}[neutron]
{mine}[service_user]
send_service_user_token = true
{mine}[glance]
endpoint_override = http://{address}:{network}
[filter_scheduler]
enabled_filters = ComputeFilter
'''.format(dir=c['dir'], mine=mine, address=c['address'], network=c['ports']['network']) + database(c, 'nova_cell1') + \
        database(c, 'nova_api', 'api_database') + authtoken(c, 'nova')


class Lab:
    def __init__(self, home, dir, ports, address='127.0.0.1'):
        self.home, self.dir, self.ports, self.address, self.processes = home, dir, ports, address, {}
        self.keystone = 'http://%s:%d/v3' % (address, ports['keystone'])
        self.settings = {'dir': dir, 'ports': ports, 'address': address, 'keystone': self.keystone}
        self.environment = dict(os.environ, ADDRESS=address, CONFIG=dir + '/etc', DEVICES=dir + '/devices', PYTHONWARNINGS='ignore',
                                PYTHONPATH=HERE + '/plugins',
                                PATH='%s/venv/bin:%s:/usr/sbin:/sbin' % (home, os.environ.get('PATH', '')))

    def configure(self):
        for name in ('etc', 'log', 'db', 'state/cinder', 'state/nova', 'lock/cinder', 'lock/nova', 'volumes', 'backups',
                     'devices', 'fernet', 'credential'):
            os.makedirs(os.path.join(self.dir, name), exist_ok=True)
        for name, text in (('keystone', keystone_conf), ('placement', placement_conf), ('cinder', cinder_conf),
                           ('nova', nova_conf)):
            with open('%s/etc/%s.conf' % (self.dir, name), 'w') as file:
                file.write(text(self.settings))
        for source, name in (('cinder/api-paste.ini', 'cinder-api-paste.ini'),
                             ('cinder/resource_filters.json', 'resource_filters.json'),
                             ('nova/api-paste.ini', 'nova-api-paste.ini')):
            shutil.copy('%s/venv/etc/%s' % (self.home, source), '%s/etc/%s' % (self.dir, name))

    def start(self, name):
        log = open('%s/log/%s.out' % (self.dir, name), 'ab')
        command = [self.home + '/venv/bin/python', HERE + '/serve.py', name, str(self.ports[name])]
        self.processes[name] = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                                                stderr=log, start_new_session=True)

    def wait(self, name):
        """Seen once in some twenty starts: a service that hangs before it listens. It is started again, and says where."""
        if not self._wait(name):
            print('%s does not answer, and is started again: %s' % (name, self._said(name)), file=sys.stderr, flush=True)
            self._kill(name)
            self.start(name)
            if not self._wait(name):
                raise SystemExit('%s does not answer: %s' % (name, self._said(name)))

    def _said(self, name):
        if self.processes[name].poll() is None:
            # serve.py prints where its threads are.
            self.processes[name].send_signal(signal.SIGUSR1)
            time.sleep(1)
        with open('%s/log/%s.out' % (self.dir, name)) as file:
            return file.read()[-6000:]

    def _computed(self, name):
        """The processor time that a service has used, in seconds."""
        try:
            with open('/proc/%d/stat' % self.processes[name].pid) as file:
                fields = file.read().rpartition(')')[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def _wait(self, name, stands_still=45, limit=600):
        """A service that still computes is on its way, however little of the machine it gets; one that hangs uses nothing."""
        begun = since = time.monotonic()
        used = self._computed(name)
        while True:
            try:
                urllib.request.urlopen('http://%s:%d/' % (self.address, self.ports[name]), timeout=2).close()
                return True
            except urllib.error.HTTPError:
                return True
            except OSError:
                pass
            now, computed = time.monotonic(), self._computed(name)
            if computed - used > 0.5:
                used, since = computed, now
            if self.processes[name].poll() is not None or now - since > stands_still or now - begun > limit:
                return False
            time.sleep(0.05)

    def _kill(self, name):
        try:
            os.killpg(self.processes[name].pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.processes[name].wait()

    def stop(self):
        for name in self.processes:
            self._kill(name)
        listed = subprocess.run(['losetup', '--list', '--noheadings', '--output', 'NAME,BACK-FILE'],
                                capture_output=True, text=True).stdout
        for line in listed.splitlines():
            device, _, file = line.partition(' ')
            if file.strip().startswith(self.dir + '/'):
                subprocess.run(['losetup', '--detach', device])


def template(home):
    """Schemas, users, roles and catalog, made once and copied by every run."""
    made = home + '/template'
    shutil.rmtree(made, ignore_errors=True)
    lab = Lab(home, made, TEMPLATE_PORTS)
    lab.configure()

    def manage(*commands):
        for command in commands:
            project, rest = command.split(' ', 1)
            line = ['%s/venv/bin/%s-manage' % (home, project)]
            if project != 'nova':
                line += ['--config-file', '%s/etc/%s.conf' % (made, project)]
            else:
                line += ['--config-dir', made + '/etc', '--config-file', made + '/etc/nova.conf']
            done = subprocess.run(line + rest.split(), env=lab.environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit('%s: %s%s' % (command, done.stdout[-2000:], done.stderr[-2000:]))

    url = lab.keystone
    bootstrap = ('keystone bootstrap --bootstrap-username admin --bootstrap-password admin --bootstrap-project-name '
                 'admin --bootstrap-role-name admin --bootstrap-service-name keystone --bootstrap-region-id RegionOne '
                 '--bootstrap-public-url {0} --bootstrap-internal-url {0} --bootstrap-admin-url {0}').format(url)
    failed = []

    def side(*commands):
        try:
            manage(*commands)
        except SystemExit as error:
            failed.append(error)

    # Two cores: two halves at once.
    other = threading.Thread(target=side, args=(
        'nova api_db sync', 'nova cell_v2 map_cell0 --database_connection sqlite:///%s/db/nova_cell0.db' % made,
        'nova db sync', 'nova cell_v2 create_cell --name cell1 --transport-url fake:// --database_connection '
        'sqlite:///%s/db/nova_cell1.db' % made))
    other.start()
    side('keystone fernet_setup --keystone-user root --keystone-group root',
         'keystone credential_setup --keystone-user root --keystone-group root', 'keystone db_sync', bootstrap,
         'placement db sync', 'cinder db sync')
    other.join()
    if failed:
        raise failed[0]
    lab.start('keystone')
    try:
        lab.wait('keystone')
        seed(lab)
    finally:
        lab.stop()


def seed(lab):
    url = lab.keystone
    token = {}

    def call(method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url + path, data, {'Content-Type': 'application/json', **token}, method=method)
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
            return answer.headers, json.loads(text) if text else None

    def scoped(user, password, project):
        domain = {'id': 'default'}
        return {'auth': {'identity': {'methods': ['password'], 'password': {'user': {
            'name': user, 'domain': domain, 'password': password}}}, 'scope': {'project': {
                'name': project, 'domain': domain}}}}

    headers, _ = call('POST', '/auth/tokens', scoped('admin', 'admin', 'admin'))
    token['X-Auth-Token'] = headers['X-Subject-Token']
    roles = {role['name']: role['id'] for role in call('GET', '/roles')[1]['roles']}
    for name in ('service', 'member', 'reader'):
        if name not in roles:
            roles[name] = call('POST', '/roles', {'role': {'name': name}})[1]['role']['id']
    projects = {name: call('POST', '/projects', {'project': {'name': name, 'domain_id': 'default'}})[1]['project']['id']
                for name in ('service', 'demo')}

    def user(name, password, project, *granted):
        made = call('POST', '/users', {'user': {'name': name, 'password': password, 'domain_id': 'default'}})
        for role in granted:
            call('PUT', '/projects/%s/users/%s/roles/%s' % (projects[project], made[1]['user']['id'], roles[role]))
        return made[1]['user']['id']

    for name in ('cinder', 'nova', 'placement'):
        user(name, 'svc', 'service', 'service', 'admin')
    demo = user('demo', 'demo', 'demo', 'member')
    ports = lab.ports
    for name, kind, path in (('cinder', 'block-storage', ':%d/v3' % ports['cinder']),
                             ('cinderv3', 'volumev3', ':%d/v3/$(project_id)s' % ports['cinder']),
                             ('nova', 'compute', ':%d/v2.1' % ports['nova']),
                             ('placement', 'placement', ':%d' % ports['placement']),
                             ('neutron', 'network', ':%d' % ports['network'])):
        service = call('POST', '/services', {'service': {'name': name, 'type': kind}})[1]['service']['id']
        for interface in ('public', 'internal', 'admin'):
            call('POST', '/endpoints', {'endpoint': {'service_id': service, 'interface': interface, 'region_id': 'RegionOne',
                                                     'url': 'http://' + lab.address + path}})
    headers, _ = call('POST', '/auth/tokens', scoped('demo', 'demo', 'demo'))
    token['X-Auth-Token'] = headers['X-Subject-Token']
    made = call('POST', '/users/%s/application_credentials' % demo, {'application_credential': {'name': 'tests'}})
    with open(lab.dir + '/application_credential.json', 'w') as file:
        json.dump(made[1]['application_credential'], file)


def free_ports(address):
    sockets = [socket.socket() for _ in SERVICES]
    for one in sockets:
        one.bind((address, 0))
    ports = dict(zip(SERVICES, (one.getsockname()[1] for one in sockets)))
    for one in sockets:
        one.close()
    return ports


def clouds(lab):
    """clouds.yaml is YAML, of which JSON is a part."""
    with open(lab.home + '/template/application_credential.json') as file:
        credential = json.load(file)
    url = lab.keystone

    def password(name):
        return {'auth': {'auth_url': url, 'username': name, 'password': name, 'project_name': name,
                         'user_domain_id': 'default', 'project_domain_id': 'default'},
                'region_name': 'RegionOne', 'interface': 'public'}
    app = {'auth_type': 'v3applicationcredential', 'region_name': 'RegionOne', 'auth': {
        'auth_url': url, 'application_credential_id': credential['id'],
        'application_credential_secret': credential['secret']}}
    with open(lab.dir + '/clouds.yaml', 'w') as file:
        json.dump({'clouds': {'demo': password('demo'), 'admin': password('admin'), 'app': app}}, file)
    with open(lab.dir + '/ports.json', 'w') as file:
        json.dump(lab.ports, file)


def run(home, dir, address):
    lab = Lab(home, dir, free_ports(address), address)
    try:
        for name in ('db', 'fernet', 'credential'):
            shutil.copytree('%s/template/%s' % (home, name), '%s/%s' % (dir, name))
        lab.configure()
        keystone = sqlite3.connect(dir + '/db/keystone.db')
        for name, port in TEMPLATE_PORTS.items():
            keystone.execute('update endpoint set url = replace(url, ?, ?)',
                             ('127.0.0.1:%d' % port, '%s:%d' % (address, lab.ports[name])))
        keystone.commit()
        nova = sqlite3.connect(dir + '/db/nova_api.db')
        nova.execute('update cell_mappings set database_connection = replace(database_connection, ?, ?)',
                     (home + '/template', dir))
        nova.commit()
        clouds(lab)
        for name in SERVICES:
            lab.start(name)
        for name in SERVICES:
            lab.wait(name)
        print('ready', flush=True)
        for line in sys.stdin:
            try:
                command(lab, *line.split())
                print('ok', flush=True)
            except Exception as error:
                print('failed: %s' % error, flush=True)
    finally:
        lab.stop()
        shutil.rmtree(dir, ignore_errors=True)


def command(lab, what, service, number=None):
    if what == 'start':
        lab.start(service)
        lab.wait(service)
    elif what == 'signal':
        os.killpg(lab.processes[service].pid, getattr(signal, 'SIG' + number))
        if number == 'KILL':
            lab.processes[service].wait()
    elif what == 'foreign':
        foreign(lab, int(service))
    else:
        raise ValueError(what)


def foreign(lab, number):
    """So many volumes without a name, written into the database: making them takes minutes. 0: they go again."""
    cinder = sqlite3.connect(lab.dir + '/db/cinder.db', timeout=30)
    columns = [row[1] for row in cinder.execute('pragma table_info(volumes)')]
    own = {'id': lambda: str(uuid.uuid4()), 'display_name': lambda: None, 'display_description': lambda: 'foreign'}
    row = cinder.execute('select %s from volumes where deleted = 0 limit 1' % ', '.join(columns)).fetchone()
    with cinder:
        cinder.execute("delete from volumes where display_description = 'foreign'")
        for _ in range(number):
            values = [own[name]() if name in own else value for name, value in zip(columns, row)]
            cinder.execute('insert into volumes (%s) values (%s)' % (', '.join(columns), ', '.join('?' * len(values))),
                           values)


if sys.argv[1] == 'template':
    template(os.path.realpath(sys.argv[2]))
else:
    run(os.path.realpath(sys.argv[2]), os.path.abspath(sys.argv[3]), *sys.argv[4:])
