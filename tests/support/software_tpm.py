"""A TPM 2.0 in software (swtpm) with a state of its own, for as long as a test runs. Without what it needs, a skip."""

import importlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from store.tpm import Tpm

MakeTpm = Callable[[], "SoftwareTpm"]


class SoftwareTpm:
    """A running swtpm. `name` is for [tpm] tcti. `forget` ends it and its state, as a machine that is thrown away."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="swtpm-"))  # a socket's path has room for 107 bytes
        self.name = f"swtpm:path={self.folder}/tpm"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def tpm(self) -> Tpm:
        return Tpm(self.name)

    def start(self) -> None:
        """Also again, with the state that it had: a machine that was switched off."""
        server = f"type=unixio,path={self.folder}/tpm"
        self._process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.folder}", "--server", server,
             "--ctrl", f"type=unixio,path={self.folder}/tpm.ctrl", "--flags", "not-need-init,startup-clear",
             "--pid", f"file={self.folder}/ready"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        while not (self.folder / "ready").exists():  # written once it listens
            assert self._process.poll() is None, "swtpm ended at once"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            for name in ("ready", "tpm", "tpm.ctrl"):
                (self.folder / name).unlink(missing_ok=True)

    def forget(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    @contextmanager
    def raw(self) -> Iterator[tuple[Any, Any]]:
        """The library, and this TPM opened by it: for what a test has to do to it that we never do."""
        api = importlib.import_module("tpm2_pytss")
        kind, _, where = self.name.partition(":")
        with api.TCTILdr(kind, where) as way, api.ESAPI(way) as context:
            yield api, context

    def loaded(self) -> int:
        """How many transient objects and sessions it holds."""
        with self.raw() as (api, context):
            def count(first: int) -> int:
                _, data = context.get_capability(api.TPM2_CAP.HANDLES, first, 16)
                return len(list(data.data.handles))

            return count(0x80000000) + count(0x02000000) + count(0x03000000)

    def keep_root(self, algorithm: str = "ecc256:aes128cfb") -> None:
        """Puts a storage root key where systems keep it."""
        attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
        with self.raw() as (api, context):
            public = api.TPM2B_PUBLIC(api.TPMT_PUBLIC.parse(algorithm, objectAttributes=attributes))
            handle, *_ = context.create_primary(None, public)
            context.evict_control(api.ESYS_TR.OWNER, handle, 0x81000001)
            context.flush_context(handle)

    def write_certificate(self, der: bytes) -> None:
        """Where a maker puts the one of the P-256 endorsement key."""
        with self.raw() as (api, context):
            attributes = api.TPMA_NV.parse("ownerread|ownerwrite|authread|authwrite|no_da")
            public = api.TPM2B_NV_PUBLIC(api.TPMS_NV_PUBLIC(
                nvIndex=0x01C0000A, nameAlg=api.TPM2_ALG.SHA256, attributes=attributes, dataSize=len(der) + 32,
            ))
            index = context.nv_define_space(None, public)
            for at in range(0, len(der), 512):
                context.nv_write(index, der[at:at + 512], at)


@contextmanager
def software_tpms() -> Iterator[MakeTpm]:
    """Makes as many as are asked for; none outlives the context."""
    try:
        importlib.import_module("tpm2_pytss")
    except (ImportError, RuntimeError, NotImplementedError):
        pytest.skip("tpm2-pytss is not installed")
    if shutil.which("swtpm") is None:
        pytest.skip("swtpm is not installed")
    made: list[SoftwareTpm] = []

    def make() -> SoftwareTpm:
        made.append(SoftwareTpm())
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.stop()
            shutil.rmtree(one.folder, ignore_errors=True)
