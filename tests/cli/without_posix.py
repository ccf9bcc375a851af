"""Run commands without the parts of Python that Windows or macOS lacks.

`python without_posix.py windows|macos COMMAND ...`, each command with its arguments as one word.
Third-party packages are imported first, since their builds for those systems do not need these
parts. This does not replace tests on the systems themselves.
"""

import errno
import importlib
import os
import pathlib
import shutil
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

PACKAGES = (
    "cyclopts", "duckdb", "fsspec", "fsspec.implementations.local", "numpy", "PIL.Image",
    "PIL.ImageOps", "pyarrow.parquet", "pyarrow.compute", "pydantic", "tabulate", "tqdm.auto",
    "xxhash", "yaml", "tempfile", "subprocess", "socket", "importlib.resources",
    "importlib.metadata", "rich.console", "asyncio", "multiprocessing.popen_spawn_posix",
    "multiprocessing.connection", "concurrent.futures.process",

)  # fmt: skip
WINDOWS_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty")
WINDOWS_OS = (
    "fork", "register_at_fork", "getuid", "geteuid", "mkfifo", "O_NOFOLLOW", "O_DIRECTORY",
    "O_NONBLOCK", "O_CLOEXEC", "sched_getaffinity", "sched_setaffinity", "statvfs", "fchmod",
    "killpg", "getpgid", "setsid", "pread", "pwrite", "uname", "WNOHANG",
)  # fmt: skip
WINDOWS_SIGNALS = ("SIGALRM", "SIGKILL", "SIGHUP", "SIGUSR1", "SIGPIPE", "setitimer", "ITIMER_REAL",
                   "alarm", "pthread_kill", "siginterrupt")  # fmt: skip


def lack(module: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def hide(modules: tuple[str, ...]) -> None:
    for name in modules:
        sys.modules[name] = None  # type: ignore[assignment]


def windows() -> None:
    hide(WINDOWS_MODULES)
    lack(os, WINDOWS_OS)
    lack(signal, WINDOWS_SIGNALS)
    os.supports_dir_fd = set()
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    os.O_BINARY = 0  # type: ignore[attr-defined]
    real_open = os.open

    def opens(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        assert dir_fd is None, "Windows has no dir_fd"
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real_open(path, flags, mode)

    def kill(_process: int, _signal: int) -> None:
        raise AssertionError("os.kill ends processes on Windows")

    os.open, os.kill = opens, kill  # type: ignore[assignment]
    locked = types.ModuleType("msvcrt")
    locked.LK_NBLCK, locked.LK_UNLCK = 2, 0  # type: ignore[attr-defined]
    locked.locking = lambda handle, mode, size: os.fstat(handle)  # type: ignore[attr-defined]
    sys.modules["msvcrt"] = locked
    import ctypes

    kernel = types.SimpleNamespace(
        OpenProcess=lambda access, inherit, process: int(process == os.getpid()),
        WaitForSingleObject=lambda handle, wait: 258,
        CloseHandle=lambda handle: 1,
        GetLastError=lambda: 87,
    )
    ctypes.windll = types.SimpleNamespace(kernel32=kernel)  # type: ignore[attr-defined]
    sys.platform = "win32"


def macos() -> None:
    lack(os, ("sched_getaffinity", "sched_setaffinity"))
    sys.platform = "darwin"


def no_proc() -> None:
    real: Callable[..., str] = pathlib.Path.read_text

    def read_text(self: pathlib.Path, *args: Any, **named: Any) -> str:
        if str(self).startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, "no /proc", str(self))
        return real(self, *args, **named)

    pathlib.Path.read_text = read_text  # type: ignore[assignment]


OF_MODELS = ("torch", "safetensors.torch", "openvino")
for name in PACKAGES + (OF_MODELS if any("mini" in one for one in sys.argv) else ()):
    importlib.import_module(name)
no_proc()
{"windows": windows, "macos": macos}[sys.argv[1]]()
from capmix.cli.main import main  # noqa: E402

for command in sys.argv[2:]:
    code = main(command.split())
    if code:
        sys.exit(code)
