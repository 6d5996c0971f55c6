"""A minimal Ceph cluster in memory and on loopback: one monitor, one object store daemon, one S3 gateway.

It needs Debian's packages ceph-mon, ceph-osd, ceph-common and radosgw.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from demo.processes import Child, free_port, running

PROGRAMS = ("ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool", "radosgw", "radosgw-admin")

_CONFIG = """[global]
fsid = {fsid}
mon_host = {monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {folder}/keyring
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
run_dir = {folder}/run
log_file = {folder}/$name.log
admin_socket = {folder}/run/$name.asok
pid_file = {folder}/run/$name.pid
osd_objectstore = memstore
memstore_device_bytes = 1073741824
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_warn = 1
mon_data_avail_crit = 1
rgw_frontends = beast endpoint=127.0.0.1:{gateway}
"""

_USERS = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "client.rgw": {"mon": "allow rw", "osd": "allow rwx"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
}


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def running_ceph(folder: Path, *, access_key: str, secret_key: str) -> Iterator[str]:
    """Context manager for a running cluster with a user of these keys; yields the URL of its S3 gateway."""
    gateway, fsid = free_port(), str(uuid.uuid4())
    monitor = f"[v2:127.0.0.1:{free_port()},v1:127.0.0.1:{free_port()}]"
    for name in ("mon", "osd", "rgw", "run"):
        (folder / name).mkdir(parents=True)
    config = folder / "ceph.conf"
    config.write_text(_CONFIG.format(fsid=fsid, monitor=monitor, folder=folder, gateway=gateway), encoding="utf-8")

    def run(program: str, *arguments: str | Path) -> None:
        subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True, timeout=120)

    for number, (name, capabilities) in enumerate(_USERS.items()):
        powers = [part for kind, power in capabilities.items() for part in ("--cap", kind, power)]
        create = ["--create-keyring"] if number == 0 else []
        run("ceph-authtool", *create, "keyring", "--gen-key", "-n", name, *powers)
    run("monmaptool", "--create", "--addv", "a", monitor, "--fsid", fsid, "monmap")
    run("ceph-mon", "-c", config, "--mkfs", "-i", "a", "--monmap", "monmap")
    with ExitStack() as daemons:

        def start(program: str, *arguments: str) -> Child:
            command: list[str | Path] = [program, "-c", config, "-f", *arguments]
            log = folder / f"{program}.out"
            return daemons.enter_context(running(program, command, log=log, environment={}, cwd=folder))

        start("ceph-mon", "-i", "a")
        run("ceph", "-c", config, "auth", "import", "-i", "keyring")
        store = str(uuid.uuid4())
        run("ceph", "-c", config, "osd", "new", store)
        run("ceph-osd", "-c", config, "-i", "0", "--mkfs", "--osd-uuid", store)
        start("ceph-osd", "-i", "0")
        (folder / "rgw" / "keyring").write_bytes((folder / "keyring").read_bytes())
        url = f"http://127.0.0.1:{gateway}"
        start("radosgw", "-n", "client.rgw").wait_for(url, timeout_s=120)
        user = ["--uid", "labelnext", "--display-name", "labelnext"]
        user += ["--access-key", access_key, "--secret-key", secret_key]
        run("radosgw-admin", "-c", config, "user", "create", *user)
        yield url
