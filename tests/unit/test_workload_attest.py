"""Attestation of callers on a Unix socket, with real processes of real executables."""

import errno
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.gateway.identity.workloads import attest
from relay.gateway.identity.workloads.attest import SO_PEERPIDFD, Caller, Digests, NotAttested
from relay.gateway.identity.workloads.entries import Workload, matching, problem, wants_file
from transport.primitives import sha256

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who calls")
PYTHON = Path(os.path.realpath(sys.executable))
THING = Workload(id="/workload/thing", uid=1_000, path="/usr/bin/thing", sha256="00" * 32)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "s"))
        (tmp_path / "s").chmod(0o666)
        listening.listen()
        listening.settimeout(60)
        yield listening


class Program:
    """A child that runs `code`, which has `connect()`; it tells and is told by lines."""

    HEAD = """
        import os, socket, sys
        def connect():
            s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            s.connect(sys.argv[1])
            os.set_inheritable(s.fileno(), True)
            return s
        def say(text):
            print(text, flush=True)
        def hear():
            return sys.stdin.readline().strip()
    """

    def __init__(self, door: socket.socket, code: str, *, executable: Path = PYTHON, **options: Any) -> None:
        text = textwrap.dedent(self.HEAD) + textwrap.dedent(code)
        self.child = subprocess.Popen(
            [executable, "-I", "-c", text, door.getsockname()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={
                "PYTHONHOME": sys.base_prefix, "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib", "PATH": "/usr/bin:/bin"
            }, **options,
        )

    def hear(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline().strip()

    def say(self, text: str = "go") -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(text + "\n")
        self.child.stdin.flush()

    def end(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate()


@pytest.fixture
def run(door: socket.socket) -> Iterator[Callable[..., Program]]:
    children: list[Program] = []

    def start(code: str, **options: Any) -> Program:
        children.append(Program(door, code, **options))
        return children[-1]

    yield start
    for child in children:
        child.end()


@pytest.fixture
def accept(door: socket.socket) -> Iterator[Callable[[], Caller]]:
    held: list[Any] = []

    def one() -> Caller:
        connection, _ = door.accept()
        held.append(connection)
        caller = Caller.of(connection)
        held.append(caller)
        return caller

    yield one
    for thing in held:
        thing.close()


def look(caller: Caller) -> tuple[str | None, str | None]:
    seen = caller.attest(Digests(), path=True, digest=True)
    return seen.path, seen.sha256


def reason(caller: Caller) -> str:
    with pytest.raises(NotAttested) as refused:
        look(caller)
    return refused.value.reason


def copy(tmp_path: Path, name: str, *, of: Path = PYTHON) -> Path:
    made = tmp_path / name
    shutil.copy(of, made)
    return made


WAITING = "s = connect(); say(os.getpid()); hear()"
ANOTHER = "caller runs another executable than when it connected"


def test_a_process_is_known_by_user_number_path_and_content(
    tmp_path: Path, run: Callable[..., Program], accept: Callable[[], Caller]
) -> None:
    thing = copy(tmp_path, "thing")
    child = run(WAITING, executable=thing)
    caller = accept()
    seen = caller.attest(Digests(), path=True, digest=True)
    assert (seen.pid, seen.uid) == (child.child.pid, os.getuid())
    assert (seen.path, seen.sha256) == (str(thing), sha256(thing.read_bytes()).hex())
    only = caller.attest(Digests(), path=False, digest=False)
    assert (only.path, only.sha256) == (None, None)


def test_by_a_symbolic_link_it_is_the_file_that_counts(
    tmp_path: Path, run: Callable[..., Program], accept: Callable[[], Caller]
) -> None:
    other, link = copy(tmp_path, "other"), tmp_path / "thing"
    link.symlink_to(other)
    run(WAITING, executable=link)
    assert look(accept())[0] == str(other)


@pytest.mark.parametrize("how", ["deleted", "replaced", "renamed over", "link moved"])
def test_M15_what_runs_counts_and_not_what_is_there_now(
    tmp_path: Path, run: Callable[..., Program], accept: Callable[[], Caller], how: str
) -> None:
    """A program at the path of another by the time that it is looked at."""
    evil, good = copy(tmp_path, "evil"), tmp_path / "good"
    good.write_bytes(evil.read_bytes() + b"the good one")
    good.chmod(0o755)
    child = run(WAITING, executable=evil)
    caller = accept()
    child.hear()
    before = sha256(evil.read_bytes()).hex()
    if how == "deleted":
        evil.unlink()
    elif how == "replaced":
        evil.unlink()
        shutil.copy(good, evil)
    elif how == "renamed over":
        good.rename(evil)
    else:
        evil.rename(tmp_path / "moved")
        evil.symlink_to(good)
    path, digest = look(caller)
    assert path in (None, str(tmp_path / "moved"))  # where it is, or nowhere; never the path that it had
    assert digest == before


def test_who_connects_and_then_becomes_another_program_is_refused(
    tmp_path: Path, run: Callable[..., Program], accept: Callable[[], Caller], door: socket.socket
) -> None:
    """connect, exec: else whoever connects could become the program whose identity it wants, its socket kept."""
    good = copy(tmp_path, "good", of=Path("/bin/sleep"))
    child = run(f"s = connect(); say(1); hear(); os.execv({str(good)!r}, ['good', '600'])")
    caller = accept()
    child.hear()
    assert look(caller)[0] == str(PYTHON)
    child.say()
    _until(lambda: os.path.realpath(f"/proc/{child.child.pid}/exe") == str(good))
    assert reason(caller) == ANOTHER


def test_M15_who_execs_between_two_looks_at_once_is_refused(
    tmp_path: Path, run: Callable[..., Program], accept: Callable[[], Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last comparison is of after the file was read."""
    good = copy(tmp_path, "good", of=Path("/bin/sleep"))
    child = run(f"s = connect(); say(1); hear(); os.execv({str(good)!r}, ['good', '600'])")
    caller = accept()
    child.hear()
    of = Digests.of

    def slow(digests: Digests, descriptor: int) -> str:
        found = of(digests, descriptor)
        child.say()
        _until(lambda: os.path.realpath(f"/proc/{child.child.pid}/exe") == str(good))
        return found

    monkeypatch.setattr(Digests, "of", slow)
    assert reason(caller) == ANOTHER


def test_who_was_another_program_for_a_moment_is_refused(
    run: Callable[..., Program], accept: Callable[[], Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that is read is compared, too, and not only what ran before and after."""
    run(WAITING)
    caller, real = accept(), os.open
    monkeypatch.setattr(attest.os, "open", lambda path, flags, *rest, **more: (
        real("/bin/sleep", flags) if path == "exe" else real(path, flags, *rest, **more)
    ))
    assert reason(caller) == ANOTHER


def test_a_path_of_another_mount_namespace_means_nothing_here(
    tmp_path: Path, run: Callable[..., Program], accept: Callable[[], Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user may have one, where anything may be mounted over the path of another program."""
    evil, good = copy(tmp_path, "evil"), copy(tmp_path, "good")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0:
        script = f'mount --bind {evil} {good} && exec {good} "$@"'
        launcher = tmp_path / "launcher"
        launcher.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{script}' sh \"$@\"\n")
        launcher.chmod(0o755)
        child = run(WAITING, executable=launcher)
    else:
        child = run(WAITING, executable=evil)
        monkeypatch.setattr(attest.os, "readlink", lambda path: str(good))
    caller = accept()
    child.hear()
    path, digest = look(caller)
    assert path is None
    assert digest == sha256(evil.read_bytes()).hex()


def test_a_connection_that_was_handed_on_stays_its_makers(
    tmp_path: Path, run: Callable[..., Program], accept: Callable[[], Caller]
) -> None:
    """fork and SCM_RIGHTS: the holder of the socket is another process, which has nothing of its own by it."""
    child = run("""
        s = connect()
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            _, held, _, _ = socket.recv_fds(theirs, 1, 1)
            s.close()
            socket.socket(fileno=held[0]).send(b"hello")
            os.read(0, 1)
            os._exit(0)
        socket.send_fds(ours, [b"x"], [s.fileno()])
        s.close()
        say(pid)
        os.waitpid(pid, 0)
    """)
    caller = accept()
    holder = int(child.hear())
    seen = caller.attest(Digests(), path=True, digest=False)
    assert seen.pid == child.child.pid != holder


def test_when_its_maker_is_gone_a_connection_is_nobodys(
    run: Callable[..., Program], accept: Callable[[], Caller]
) -> None:
    """A child that holds the socket lives on; so might a new process of the same number."""
    child = run("""
        s = connect()
        pid = os.fork()
        if not pid:
            sys.stdin.close()
            import signal
            signal.pause()
        say(pid)
        hear()
        os._exit(0)
    """)
    caller = accept()
    holder = int(child.hear())
    try:
        look(caller)
        child.say()
        child.child.wait(60)
        os.kill(holder, 0)  # the socket is open still
        assert reason(caller) == "caller is gone"
    finally:
        os.kill(holder, signal.SIGKILL)


def test_a_process_that_nobody_has_waited_for_is_gone(
    run: Callable[..., Program], accept: Callable[[], Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder in /proc is there still, with its user and start."""

    def denied(self: Caller) -> tuple[int, int]:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Caller, "_executable", denied)
    child = run(WAITING)
    caller = accept()
    assert caller.attest(Digests(), path=False, digest=False).pid == child.child.pid
    child.child.kill()
    os.waitid(os.P_PID, child.child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(NotAttested, match="caller is gone"):
        caller.attest(Digests(), path=False, digest=False)


def test_who_left_before_it_was_accepted_is_nobody(run: Callable[..., Program], door: socket.socket) -> None:
    child = run("s = connect()")
    child.child.wait(60)
    connection, _ = door.accept()
    with connection, pytest.raises(NotAttested, match="caller is gone"):
        Caller.of(connection)


def test_a_number_that_is_used_again_is_another_process(
    run: Callable[..., Program], accept: Callable[[], Caller], door: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without SO_PEERPIDFD the number is all there is: start time, and the folder in /proc, belong to one process."""
    run(WAITING)
    caller = accept()
    real = Caller._start_time
    monkeypatch.setattr(Caller, "_start_time", lambda self: real(self) + 1)
    assert reason(caller) == "caller is gone"


class Older:
    """A socket of a kernel that has no SO_PEERPIDFD."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.asked: list[int] = []

    def getsockopt(self, level: int, name: int, size: int = 0, /) -> bytes:
        self.asked.append(name)
        if name == SO_PEERPIDFD:
            raise OSError(errno.ENOPROTOOPT, "no such option")
        return self._connection.getsockopt(level, name, size)


def test_an_older_kernel_is_asked_by_number(run: Callable[..., Program], door: socket.socket) -> None:
    child = run(WAITING)
    connection, _ = door.accept()
    with connection:
        older = Older(connection)
        caller = Caller.of(older)
        try:
            assert SO_PEERPIDFD in older.asked
            assert caller.attest(Digests(), path=False, digest=False).pid == child.child.pid
            child.end()
            assert reason(caller) == "caller is gone"
        finally:
            caller.close()


def test_another_process_namespace_has_no_number_here(door: socket.socket) -> None:
    class Outside:
        def getsockopt(self, level: int, name: int, size: int = 0, /) -> bytes:
            return struct.pack("3i", 0, 1_000, 1_000)

    with pytest.raises(NotAttested, match="outside of this process namespace"):
        Caller.of(Outside())


def test_who_changes_its_user_is_refused(
    run: Callable[..., Program], accept: Callable[[], Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = run("s = connect(); say(1); hear(); os.getuid() or os.setuid(12345); say(2); hear()")
    caller = accept()
    child.hear()
    assert look(caller)[0] == str(PYTHON)
    child.say()
    child.hear()
    if os.getuid() != 0:  # nobody but root may change it in truth
        monkeypatch.setattr(Caller, "_user", lambda self: os.getuid() + 1)
    assert reason(caller) == "caller has another user than when it connected"


def test_what_may_not_be_looked_at_fits_entries_without_a_file_alone(
    run: Callable[..., Program], accept: Callable[[], Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the gateway is neither root nor of the caller's user."""

    def denied(self: Caller) -> tuple[int, int]:
        raise PermissionError(errno.EACCES, "no")

    real = os.open
    monkeypatch.setattr(Caller, "_executable", denied)
    monkeypatch.setattr(attest.os, "open", lambda path, *rest, **more: (
        denied(caller) if path == "exe" else real(path, *rest, **more)
    ))
    run(WAITING)
    caller = accept()
    seen = caller.attest(Digests(), path=True, digest=True)
    assert (seen.path, seen.sha256) == (None, None)
    assert "may not look" in seen.unreadable
    uid = os.getuid()
    entries = [Workload(id="/workload/a", uid=uid), Workload(id="/workload/b", uid=uid, path=str(PYTHON))]
    assert [one.id for one in matching(entries, seen)] == ["/workload/a"]


def test_the_descriptors_are_given_back(run: Callable[..., Program], door: socket.socket) -> None:
    before = len(os.listdir("/proc/self/fd"))
    child = run(WAITING)
    connection, _ = door.accept()
    with connection:
        caller = Caller.of(connection)
        look(caller)
        caller.close()
        caller.close()
        assert reason(caller) == "caller is gone"
    child.end()
    assert child.child.stdin is not None
    child.child.stdin.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- digests --------------------------------------------------------------------------------------------------------


def digest_of(digests: Digests, path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return digests.of(descriptor)
    finally:
        os.close(descriptor)


def test_a_digest_is_kept_until_the_file_changes(tmp_path: Path) -> None:
    later = os.stat(tmp_path).st_mtime + 1_000
    digests, file = Digests(clock=lambda: later), tmp_path / "file"
    file.write_bytes(b"a" * 3_000_000)
    assert digest_of(digests, file) == digest_of(digests, file) == sha256(b"a" * 3_000_000).hex()
    assert digests.reckoned == 1
    file.write_bytes(b"b" * 3_000_000)
    os.utime(file, ns=(0, 0))  # a time that is set back leaves a trace of its own
    assert digest_of(digests, file) == sha256(b"b" * 3_000_000).hex()
    assert digests.reckoned == 2


def test_of_a_file_that_has_just_changed_nothing_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a")
    digests = Digests(clock=lambda: os.stat(file).st_ctime + 1)
    digest_of(digests, file)
    digest_of(digests, file)
    assert digests.reckoned == 2


def test_large_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1_001))
    with pytest.raises(NotAttested, match="executable too large"):
        digest_of(Digests(size_max=1_000), file)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, real = tmp_path / "file", os.pread
    file.write_bytes(bytes(3_000_000))

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        if offset:
            with file.open("ab") as more:
                more.write(b"x")
        return real(descriptor, length, offset)

    monkeypatch.setattr(attest.os, "pread", pread)
    with pytest.raises(NotAttested, match="executable changes"):
        digest_of(Digests(), file)


# --- entries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uid", "path", "digest", "fits"),
    [
        (1_000, "/usr/bin/thing", "00" * 32, True),
        (1_001, "/usr/bin/thing", "00" * 32, False),
        (1_000, "/usr/bin/thing2", "00" * 32, False),
        (1_000, "/usr/bin/thing", "01" * 32, False),
        (1_000, None, "00" * 32, False),
        (1_000, "/usr/bin/thing", None, False),
        (0, "/usr/bin/thing", "00" * 32, False),
    ],
)
def test_all_that_is_given_must_fit(uid: int, path: str | None, digest: str | None, fits: bool) -> None:
    assert bool(matching([THING], attest.Seen(1, uid, path, digest))) is fits


def test_the_file_is_looked_at_for_whom_an_entry_names_it() -> None:
    assert wants_file([THING], 1_000) == (True, True)
    assert wants_file([THING], 0) == (False, False)
    assert wants_file([Workload(id="/workload/a", uid=0, path="/x")], 0) == (True, False)


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        ([THING], ""),
        ([THING, Workload(id="/workload/thing", uid=1)], "two of this ID"),
        ([Workload(id="/workload/admin/x", uid=1)], "administrators"),
        ([Workload(id="/workload/administrator", uid=1)], ""),
        ([Workload(id="/workload/a", uid=1, hint="h"), Workload(id="/workload/b", uid=1, hint="h")], "hint"),
    ],
)
def test_entries_that_contradict_each_other_are_named(entries: list[Workload], wrong: str) -> None:
    told = problem(entries, "field.example")
    assert wrong in told if wrong else not told


def _until(true: Callable[[], bool]) -> None:
    """A process does its part in a moment; a run that never gets there ends by the run's own limit."""
    while not true():
        os.sched_yield()
