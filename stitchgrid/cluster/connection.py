"""Connect to a Ray cluster, or start a local one: addresses, tokens, quiet output, and restoring of settings.

Ray reads some of its settings when it is imported, and some of its threads print. Only this module deals with that.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from math import ceil
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from stitchgrid.cluster.shared_memory import object_store_folder
from stitchgrid.cpus import num_cpus
from stitchgrid.errors import ClusterError, InputError
from stitchgrid.paths import named_path
from stitchgrid.private_folder import numbered_folder, private_path, read_own

_log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100_000_000  # only the context of a run goes through the object store
LISTEN_TIMEOUT_S = 2.0
PROBE_TIMEOUT_S = 15.0
NICENESS = "RAY_worker_niceness"  # Ray's default is 15: then every other process on the machine goes before workers
SESSION = "ray"  # start of the name of a local cluster's folder
LONGEST_SESSION = 43  # bytes of that folder's path: a socket's path may have 107, and Ray adds date, process and name

# Runs in a process of its own: Ray aborts the process if a token is missing, and retries for 40 s without an answer.
PROBE = """
import sys
try:
    from ray._raylet import GcsClient
    GcsClient(address=sys.argv[1]).internal_kv_get(b"session_name", b"session", timeout=5)
except (ImportError, AttributeError, TypeError):
    pass  # a Ray without this interface: ray.init reports problems
except BaseException as problem:
    print(type(problem).__name__, problem)
"""


class Connection:
    """A connection to Ray within a block; if this process is connected already, that connection is used and stays.

    `address` is "local" (a cluster that this process starts on the loopback device and stops at the end), "auto" or
    "HOST:PORT". The folder `package` is sent to every node, where workers can import it. A process that is connected
    already cannot send it, so the nodes must have these files.
    """

    def __init__(self, address: str, *, min_cpus: float = 0, package: Path | None = None):
        if address not in ("local", "auto"):
            check_host_and_port(address, f"--address {address}")
        self.address = address
        self.min_cpus = min_cpus  # a local cluster has at least so many, even if the machine has fewer
        self.is_local = address == "local"
        self.package = package
        self.log_folder: Path | None = None  # folder of a local cluster
        self.keep_logs = False
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            self._check_that_it_is(ray.get_runtime_context().gcs_address)
            self._undo.enter_context(quiet_driver())
            return self
        with ExitStack() as undo:
            if self.is_local:
                self._start(undo)
            else:
                self._join(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _check_that_it_is(self, connected: str) -> None:
        if self.is_local:
            return
        target = find_cluster(self.address)
        require_listener(target)
        if target.rpartition(":")[2] != connected.rpartition(":")[2]:
            raise ClusterError(
                f"This process is connected to the Ray cluster at {connected}, so it cannot use --address "
                f"{self.address}; call ray.shutdown() first."
            )

    def _start(self, undo: ExitStack) -> None:
        environment = {
            "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),
            NICENESS: os.environ.get(NICENESS, "0"),
        }
        if not os.environ.get("RAY_AUTH_TOKEN") and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            environment["RAY_AUTH_TOKEN"] = token_hex(32)  # else Ray writes a token to the home folder
        undo.enter_context(Settings(environment, loopback=True))
        self.log_folder = numbered_folder(SESSION, session_home())
        undo.callback(self._remove_logs)
        total = max(num_cpus(), ceil(self.min_cpus))
        _init(
            undo,
            self.package,
            address="local",
            num_cpus=total,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _plasma_directory=str(object_store_folder(self.log_folder, OBJECT_STORE_BYTES)[0]),
            _node_ip_address="127.0.0.1",
            _temp_dir=str(self.log_folder),
        )

    def _join(self, undo: ExitStack) -> None:
        target = find_cluster(self.address)
        require_listener(target)
        undo.enter_context(Settings({"RAY_AUTH_MODE": _authentication_mode()}, loopback=False))
        _probe(target)
        _init(undo, self.package, address=target)

    def _remove_logs(self) -> None:
        if self.log_folder is not None and not self.keep_logs:
            shutil.rmtree(self.log_folder, ignore_errors=True)


class Settings:
    """Sets environment variables for Ray within a block; if Ray is imported already, makes it read them again."""

    def __init__(self, environment: dict[str, str], *, loopback: bool):
        self.environment = {"RAY_USAGE_STATS_ENABLED": "0", **environment}
        if loopback:  # without this, Ray replaces 127.0.0.1 by the machine's address, and other machines can connect
            self.environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        _read_settings_again()

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_settings_again()


def session_home() -> Path:
    """Return the folder for the user's private folder, which holds Ray's: $RAY_TMPDIR, else $TMPDIR, else /tmp.

    Raises:
        ClusterError: If $RAY_TMPDIR is not a writable folder, or the paths of sockets in it would be too long.
    """
    named = os.environ.get("RAY_TMPDIR")
    homes = [named_path(named)] if named else [Path(tempfile.gettempdir()), Path("/tmp")]
    for home in homes:
        session = private_path(home) / f"{SESSION}999"
        if len(os.fsencode(session)) <= LONGEST_SESSION:
            if named and not os.access(home, os.W_OK | os.X_OK):
                raise ClusterError(
                    f"RAY_TMPDIR names {named}, which is not a folder that you can write; make it, name another, or "
                    "unset it."
                )
            return home
        _log.info("%s is too deep for Ray: the path of a socket in it would have more than 107 bytes", home)
    raise ClusterError(
        f"Ray would keep its sockets in {session}, a path of {len(os.fsencode(session))} bytes, but at most "
        f"{LONGEST_SESSION} leave room for their names; set RAY_TMPDIR to a folder with a shorter path, such as /tmp."
    )


def require_place() -> str | None:
    """Return a note about the folder of a local cluster's object store; None if it is in shared memory.

    Raises:
        ClusterError: If there is no room for the object store.
    """
    return object_store_folder(session_home(), OBJECT_STORE_BYTES)[1]


def find_cluster(address: str) -> str:
    """Return the HOST:PORT that an address stands for.

    Raises:
        InputError: If RAY_ADDRESS is not an address of a cluster.
        ClusterError: If no cluster is known on this machine.
    """
    if address != "auto":
        return address
    target = os.environ.get("RAY_ADDRESS", "")
    if target not in ("", "auto", "local"):
        check_host_and_port(target, f"RAY_ADDRESS={target}")
        return target
    return _recorded_address()


def check_host_and_port(target: str, origin: str) -> None:
    """Check that a text is HOST:PORT.

    Raises:
        InputError: If it is not; the message names `origin`.
    """
    host, _, port = target.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise InputError(
            f"{origin} is not an address of a cluster; use local, auto, none or HOST:PORT (the port is usually 6379)."
        )


def _recorded_address() -> str:
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    record = folder / "ray" / "ray_current_cluster"
    try:
        return read_own(record).strip()
    except FileNotFoundError:
        raise ClusterError(
            "found no Ray cluster on this machine: RAY_ADDRESS is not set and Ray has no record of a cluster; "
            "start one with `ray start --head`, or use --address local."
        ) from None
    except InputError as problem:  # the owner of a cluster can run code in the processes that join it
        raise ClusterError(f"{problem} To use a cluster of another user, name it: --address HOST:PORT.") from problem


def require_listener(target: str) -> None:
    """Check at once that something listens at HOST:PORT; Ray would need 20 s or more to find out.

    Raises:
        ClusterError: If nothing listens there.
    """
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LISTEN_TIMEOUT_S).close()
    except (OSError, OverflowError) as problem:
        raise ClusterError(
            f"No Ray cluster listens at {target} ({problem}); start one there with `ray start --head --port={port}`, "
            "or use --address local."
        ) from problem


def _authentication_mode() -> str:
    """Return the authentication mode for a running cluster: with a token if there is one, even if none is needed."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and not Path(path).is_file():
        raise ClusterError(f"RAY_AUTH_TOKEN_PATH names {path}, which is not a file; copy the cluster's token there.")
    has_token = bool(path or os.environ.get("RAY_AUTH_TOKEN")) or (Path.home() / ".ray" / "auth_token").is_file()
    if mode == "token" and not has_token:
        raise _token_error("RAY_AUTH_MODE=token, but there is no token")
    return mode or ("token" if has_token else "disabled")


def _token_error(what: str) -> ClusterError:
    return ClusterError(
        f"{what}; put the cluster's token into ~/.ray/auth_token or into a file named by RAY_AUTH_TOKEN_PATH "
        "(`ray get-auth-token` on the head node prints it)."
    )


def _probe(target: str) -> None:
    try:
        said = subprocess.run(
            [sys.executable, "-P", "-c", PROBE, target],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        ).stdout.strip()
    except subprocess.TimeoutExpired:
        said = f"no answer within {PROBE_TIMEOUT_S:.0f} s"
    if said.startswith("AuthenticationError"):
        raise _token_error(f"The Ray cluster at {target} needs a token, and this machine has none or a wrong one")
    if said:
        raise ClusterError(
            f"Something listens at {target}, but it does not answer like a Ray cluster ({said}); give the port of "
            "`ray start --head` (usually 6379), not the port of its dashboard."
        )


def _init(undo: ExitStack, package: Path | None, **options: Any) -> None:
    import ray

    if package is not None:
        options["runtime_env"] = {"py_modules": [str(package)]}

    undo.enter_context(quiet_driver())
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    undo.callback(ray.shutdown, wait_for_processes=True)
    # Ray's processes inherit the blocked SIGHUP. If the terminal is closed, only the launch gets it, and ends them.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        ray.init(logging_level="ERROR", log_to_driver=False, job_config=_job_config(), **options)
    except Exception as problem:
        if package is not None and "Failed to merge" in str(problem):
            raise ClusterError(
                "stitchgrid sends the job's own architecture files to the workers as `py_modules` of a runtime "
                "environment, but the runtime environment of `ray job submit` has `py_modules`, too; give those as "
                "`working_dir`, or set RAY_OVERRIDE_JOB_RUNTIME_ENV=1 to ignore them."
            ) from problem
        raise ClusterError(
            f"Ray could not be {'started' if options['address'] == 'local' else 'joined'}: {problem}"
        ) from problem
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if in_main_thread and on_sigterm is not None:  # Ray has set its own handler
            signal.signal(signal.SIGTERM, on_sigterm)


class _SearchedHere(list[str]):
    """Folders of which only those are added that this process, too, searches for modules."""

    def extend(self, paths: Iterable[str]) -> None:
        searched = {os.path.abspath(one) for one in sys.path}  # noqa: PTH100  # "" is the current folder
        super().extend(one for one in paths if os.path.abspath(one) in searched)  # noqa: PTH100


def _job_config() -> Any:
    """Return Ray's configuration of a job, whose workers import nothing from the current folder."""
    config: Any = import_module("ray.job_config").JobConfig()
    config._py_driver_sys_path = _SearchedHere()  # Ray adds the current folder, which comes before installed packages
    return config


@contextmanager
def quiet_driver() -> Iterator[None]:
    """Keep Ray's messages about dead workers and nodes off this process's stdout; Ray has no setting for that."""
    driver: Any = import_module("ray._private.worker")
    before = getattr(driver, "print_to_stdstream", None)
    if before is None:
        yield
        return
    driver.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        driver.print_to_stdstream = before


def _read_settings_again() -> None:
    if "ray" not in sys.modules:
        return
    with suppress(ImportError, AttributeError):
        raylet: Any = import_module("ray._raylet")
        constants: Any = import_module("ray._private.ray_constants")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        forced = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
        constants.ENABLE_RAY_CLUSTER = sys.platform == "linux" if forced is None else forced == "1"
