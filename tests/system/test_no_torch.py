import subprocess
import sys

import pytest

PROGRAM = """
import sys
import server.app, server.__main__, server.inference.validation, server.gunicorn_conf
found = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "baal", "trainer"})
sys.exit(f"the server imports {found}" if found else 0)
"""


@pytest.mark.system
def test_the_server_imports_no_torch():
    """Its image and its start stay small, whatever is installed beside it."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
