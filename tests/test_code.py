"""The code itself."""
import subprocess
import sys

from conftest import ROOT


def test_the_style_passes():
    out = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
