"""Test of tools/yardsticks.py: the table of docs/porting.md."""
import os
import subprocess
import sys

import pytest

from tests.helpers import HERE, read_bytes


@pytest.mark.slow
def test_the_table_of_the_porters_page_is_what_the_tool_prints():
    tool = os.path.join(HERE, "tools", "yardsticks.py")
    printed = subprocess.run([sys.executable, tool], capture_output=True, text=True, check=True).stdout
    assert printed.count("\n") == 6 and printed in read_bytes(os.path.join(HERE, "docs", "porting.md")).decode()
