"""The main job end to end, with product commands only and a capture: see `scripts/demo --help`.

    edge ──HCI──▶ recorder ──HCI──▶ radio ◀──HCI── hop ──wss──▶ recorder ──wss──▶ gateway ──http──▶ provider
    bleak, in a network             BLE 1M,                                       holds the key     stand-in,
    namespace without any network   modelled                                                        or a real one

The edge reaches the hop over Bluetooth Low Energy: by bleak and GATT, over a virtual radio (`relay sim radio`) in place
of an antenna. The two recorders (scripts/capture.py) keep what crossed the hop on either side: what the edge's host
handed to its Bluetooth controller and got from it, and what the hop and the gateway said. Afterwards the demo puts the
radio's fragments together (scripts/radio_frames.py) and searches all of it, and every file the products left on disk,
for words that were said. A search that finds nothing proves something only if it can find: so the same request also
goes to the provider in the clear, by the same radio and through a recorder of the same kind (scripts/plain_radio.py),
where all of it must be found, and the documents' words must be found in the documents.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from scripts import canaries, plain_radio, radio_frames
from scripts.staging import DemoFailed, Processes, Steps, confinement, echo, free_port
from scripts.tables import canary_table, trace_table
from transport.errors import TransportError

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
EDGE, RELAY = str(BIN / "edge"), str(BIN / "relay")
MANUAL = ROOT / "examples" / "manual"
TRUST_DOMAIN = "field.example"
LOCAL_QUESTION = "What is the maximum working pressure of the P-101 pump?"
PHY = "1m"  # see transport/links/virtual_air.py
HARD_PART = "explain in two sentences why boiling makes water safe to drink."
RELAYED_QUESTION = "For the report of station {name}: " + HARD_PART

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# What each step took on a 2-core machine, in seconds.
STEPS = {
    "starting the provider": 4.0,
    "founding a trust domain and starting the gateway": 5.0,
    "switching on a virtual Bluetooth radio": 1.0,
    "joining and starting the hop": 4.0,
    "taking the edge off every network": 1.0,
    "joining the edge, over Bluetooth and through the hop": 3.0,
    "ingesting the field manual": 10.0,
    "asking what the manual knows": 5.0,
    "asking what needs a larger model": 6.0,
    "following the trace": 2.0,
    "searching for canaries": 3.0,
}


class Demo:
    """One run: the folder it lives in, its processes, and what the steps found."""

    def __init__(self, folder: Path, processes: Processes, steps: Steps, arguments: argparse.Namespace) -> None:
        self.folder, self.processes, self.steps, self.arguments = folder, processes, steps, arguments
        self.name = canaries.word()  # said in the prompt
        self.device = f"edge/{canaries.word()}"  # the device's identity
        self.note = canaries.word()  # written in a document
        self.model_id = f"cloud-{canaries.word()}"  # what each chunk of the answer carries
        self.provider_port = free_port()
        self.ports = {name: free_port() for name in ("session", "https", "health", "wan")}
        self.prefix: list[str] = []
        self.results: dict[str, Any] = {}
        for part in ("provider", "edge", "keys", "documents"):
            (folder / part).mkdir(mode=0o700)
        for part in ("provider", "gateway", "root", "hop", "edge"):
            self.secret(f"{part}.passphrase", secrets.token_urlsafe(18))

    # --- helpers of the steps

    def secret(self, name: str, value: str) -> Path:
        path = self.folder / "keys" / name
        path.touch(mode=0o600)
        path.write_text(value + "\n")
        return path

    def environment(self, role: str) -> dict[str, str]:
        """An environment in which a command finds this role's home and passphrase, and no proxy or collector."""
        kept = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG", "XDG_CACHE_HOME", "TERM") if name in os.environ
        }
        return {
            **kept,
            "CAUSEWAY_HOME": str(self.folder / role),
            "CAUSEWAY_PASSPHRASE_FILE": str(self.folder / "keys" / f"{role}.passphrase"),
            "NO_COLOR": "1",
        }

    def run(self, role: str, *command: str, confined: bool = False, timeout: float = 120) -> str:
        """Runs one product command to its end and returns its standard output. Raises DemoFailed with what it said."""
        full = [*(self.prefix if confined else []), *command]
        done = subprocess.run(
            full,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
            env=self.environment(role),
            cwd=self.folder,
        )
        if done.returncode != 0:
            shown = " ".join(Path(part).name if part in (EDGE, RELAY) else part for part in command)
            raise DemoFailed(f"`{shown}` ended with {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}")
        return done.stdout

    def edge(self, *arguments: str) -> str:
        return self.run("edge", EDGE, *arguments, confined=True)

    def recorder(self, name: str, listen: str, to: str) -> None:
        command = [sys.executable, str(ROOT / "scripts" / "capture.py"), "--listen", listen, "--to", to]
        self.processes.start(
            f"recorder-{name}",
            [*command, "--out", str(self.folder / f"capture-{name}")],
            "capture: ready",
            self.environment("edge"),
        )

    def keys(self, role: str) -> list[str]:
        return ["--passphrase-file", str(self.folder / "keys" / f"{role}.passphrase")]

    # --- the steps

    def start_provider(self) -> None:
        if self.arguments.provider:
            self.base_url, self.key_file = self.arguments.provider, self.arguments.key_file.resolve()
            self.models = [self.arguments.model]
            self.steps.tell(f"the provider is {self.base_url}, model {self.arguments.model}, as you asked")
            return
        home = self.folder / "provider"
        command = [EDGE, "serve", "--no-store", "--port", str(self.provider_port), "--model-id", self.model_id]
        self.processes.start("provider", command, "ready", self.environment("provider"))
        self.base_url, self.key_file = f"http://127.0.0.1:{self.provider_port}/v1", home / "api-token"
        self.models = [self.model_id]
        self.steps.tell(
            "the cloud of this demo is a stand-in: an `edge serve` of its own on this machine, with the same small "
            "model, behind the OpenAI API. `--provider URL --key-file F` takes a real one."
        )

    def start_gateway(self) -> None:
        home = self.folder / "gateway"
        root = self.folder / "keys" / "root.passphrase"
        self.run(
            "gateway",
            RELAY,
            "gateway",
            "init",
            str(home),
            "--trust-domain",
            TRUST_DOMAIN,
            *self.keys("gateway"),
            "--root-passphrase-file",
            str(root),
        )
        (home / "gateway.toml").write_text(
            f"""trust_domain = "{TRUST_DOMAIN}"
[listen]
session = "tcp:127.0.0.1:{self.ports["session"]}"
https = "127.0.0.1:{self.ports["https"]}"
health = "127.0.0.1:{self.ports["health"]}"
[provider]
base_url = "{self.base_url}"
key_file = "{self.key_file}"
[[allow]]
id = "/edge/*"
models = {json.dumps(self.models)}
"""
        )
        self.config = ["--config", str(home / "gateway.toml")]
        self.processes.start(
            "gateway",
            [RELAY, "gateway", "serve", *self.config, *self.keys("gateway")],
            "gateway ready",
            self.environment("gateway"),
        )
        self.steps.tell("it alone holds the provider's key; every device it admits has an identity it issued")

    def invite(self, path: str) -> Path:
        line = self.run("gateway", RELAY, "gateway", "invite", path, *self.config, *self.keys("gateway"))
        return self.secret(path.replace("/", "-") + ".invitation", line.strip())

    def start_radio(self) -> None:
        self.radio, self.edges_radio = self.folder / "radio.sock", self.folder / "edges-radio.sock"
        command = [RELAY, "sim", "radio", str(self.radio), "--phy", PHY]
        self.processes.start("radio", command, "radio ready", self.environment("radio"))
        self.recorder("radio", f"unix:{self.edges_radio}", f"unix:{self.radio}")
        (self.folder / "edge" / "config.toml").write_text(f'[bluetooth]\nradio = "virtual:{self.edges_radio}"\n')
        self.steps.tell(
            "Bluetooth Low Energy at 1 Mbit/s without an antenna: hosts talk to it as to a controller, with the timing "
            "of a real one. A recorder sits between it and the edge."
        )

    def start_hop(self) -> None:
        home, wan = str(self.folder / "hop"), f"127.0.0.1:{self.ports['wan']}"
        self.recorder("wan", f"tcp:{wan}", f"tcp:127.0.0.1:{self.ports['https']}")
        self.run(
            "hop",
            RELAY,
            "hop",
            "join",
            "--invitation-file",
            str(self.invite("hop/pi-1")),
            "--home",
            home,
            *self.keys("hop"),
            "--gateway",
            f"https://{wan}",
        )
        way = ["--listen", "ble:pi-1", "--radio", f"virtual:{self.radio}", "--gateway", f"wss://{wan}"]
        self.processes.start(
            "hop",
            [RELAY, "hop", "serve", "--home", home, *self.keys("hop"), *way],
            "ready",
            self.environment("hop"),
        )
        self.steps.tell(
            "it copies bytes between Bluetooth and a WebSocket and has no code to read them; another recorder sits "
            "between it and the gateway"
        )

    def confine_edge(self) -> None:
        self.prefix = confinement()
        probe = (
            "import socket,sys\n"
            "try: socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2).close(); print('reached')\n"
            "except OSError as error: print('unreachable:', error.strerror)"
        )
        command = [sys.executable, "-c", probe, str(self.ports["session"])]
        outside, inside = self.run("edge", *command).strip(), self.run("edge", *command, confined=True).strip()
        if outside != "reached" or not inside.startswith("unreachable"):
            raise DemoFailed(f"confinement does not hold: outside {outside!r}, inside {inside!r}")
        self.results["confined"] = {"by": " ".join(self.prefix), "gateway_port_from_inside": inside}
        self.steps.tell(
            f"every edge command runs under `{' '.join(self.prefix)}`: from there even this machine's own ports are "
            f"{inside}; the only way out is its radio's Unix socket"
        )

    def join_edge(self) -> None:
        invitation = self.invite(self.device)
        self.edge("join", "--invitation-file", str(invitation), "--hop", "ble:")
        self.steps.tell(
            "bleak found the hop by its service; keys made on the device; its certificate came through the hop, which "
            "could not see it"
        )

    def ingest(self) -> None:
        note = self.folder / "documents" / "note.md"
        note.write_text(
            f"# Site note\n\nThe spare key of the boat house hangs behind the sign that says {self.note}.\n"
        )
        out = self.edge("ingest", str(MANUAL), str(note), "--json")
        self.results["ingested"] = json_in(out)
        self.steps.tell("23 pages of pumps (PDF), radios and first aid (Markdown), and a note with a secret word")

    def ask_locally(self) -> None:
        answer = json_in(self.edge("ask", "--json", LOCAL_QUESTION))
        if answer.get("route") != "local" or not answer.get("citations"):
            raise DemoFailed(f"expected a local answer with a citation, got: {json.dumps(answer)[:500]}")
        self.results["local"] = {"question": LOCAL_QUESTION, **answer}
        self.show_answer(LOCAL_QUESTION, answer)

    def ask_relayed(self) -> None:
        question = RELAYED_QUESTION.format(name=self.name)
        answer = json_in(self.edge("ask", "--json", question))
        if answer.get("route") != "relay" or not answer.get("trace_id"):
            raise DemoFailed(f"expected a relayed answer with a trace id, got: {json.dumps(answer)[:500]}")
        self.results["relayed"] = {"question": question, **answer}
        self.show_answer(question, answer)

    def show_answer(self, question: str, answer: dict[str, Any]) -> None:
        self.steps.tell(f"[bold]?[/] {escape(question)}")
        self.steps.tell(f"[green]{escape(answer['answer'].strip())}[/]")
        where = "; ".join(
            str(c.get("source", "")).rsplit("/", 1)[-1] + (f", page {c['page']}" if c.get("page") else "")
            for c in answer.get("citations", [])
        )
        self.steps.tell(
            f"[dim]{answer['route']}: {'; '.join(answer.get('reasons', []))}{' · ' + where if where else ''}[/]"
        )

    def follow_trace(self) -> None:
        trace_id = str(self.results["relayed"]["trace_id"])
        command = [RELAY, "gateway", "trace", trace_id, "--json", *self.config, *self.keys("gateway")]
        deadline = time.monotonic() + 5
        while True:  # the hop's last note comes when the link has ended, a moment after the answer
            spans = json_in(self.run("gateway", *command))["spans"]
            ends = {
                role: max((s["end_ms"] for s in spans if s["role"] == role), default=0) for role in ("hop", "provider")
            }
            if ends["hop"] >= ends["provider"] or time.monotonic() > deadline:
                break
        missing = {"edge", "hop", "gateway", "provider"} - {span["role"] for span in spans}
        if missing:
            raise DemoFailed(f"the trace misses {', '.join(sorted(missing))}")
        self.results["relayed"]["spans"] = spans
        self.steps.console.print(trace_table(trace_id, spans))

    def search(self) -> None:
        relayed = self.results["relayed"]
        said = canaries.Said(
            prompt=[self.name, HARD_PART],
            answer=[self.models[0], "chat.completion.chunk"],
            headers=[str(relayed["trace_id"]), "/v1/chat/completions", "application/json"],
            identity=[self.device, f"spiffe://{TRUST_DOMAIN}"],
        )
        text = str(relayed["answer"])
        # The plaintext control: the same request in the clear, by the same radio and the same kind of recorder.
        plain = self.control(said, relayed["question"], str(relayed["trace_id"]))
        control = canaries.search_folder(plain, said.needles())
        unseen = [needle for needle, count in control.items() if count == 0]
        if unseen:
            raise DemoFailed(f"the plaintext control did not show {unseen}, so the search proves nothing")
        captured = [self.folder / "capture-radio", self.folder / "capture-wan"]
        sizes = [canaries.size(folder) for folder in captured]
        together = self.folder / "together-radio"
        by_radio = radio_frames.put_together(captured[0], together)
        # The hop counted what it copied of this one answer's link; joining came before it.
        counted = [span["attributes"] for span in relayed["spans"] if span["role"] == "hop"]
        carried = sum(span[f"causeway.bytes.{way}"] for span in counted for way in ("in", "out"))
        if carried < 4096 or min(by_radio, sizes[1]) < carried:
            raise DemoFailed(f"the captures do not hold the {carried} bytes that the hop carried: {by_radio}, {sizes}")
        crossed = [*captured, together]
        needles = [*said.needles(), *canaries.windows(text), self.note]
        hop = sum(sum(canaries.search_folder(folder, needles).values()) for folder in crossed)

        written = [self.note, "maximum working pressure of the P-101 is 6 bar", "Hold the orange key for three seconds"]
        sources = [self.folder / "documents", MANUAL]
        shown = [sum(canaries.search_folder(source, [needle])[needle] for source in sources) for needle in written]
        if shown[0] == 0 or shown[2] == 0:
            raise DemoFailed("the words of the documents were not found in the documents, so the search proves nothing")
        homes = [self.folder / "edge", self.folder / "gateway", self.folder / "hop"]
        disk_needles = [*written, self.name, HARD_PART, *canaries.windows(text)]
        disk = sum(sum(canaries.search_folder(home, disk_needles).values()) for home in homes)
        # The provider's key: in no home but the provider's, in no log, and never on the way.
        key = self.key_file.read_text().strip()
        leaked = sum(canaries.search_folder(place, [key])[key] for place in [*homes, *crossed, self.folder / "logs"])
        self.results["canaries"] = {"hop": hop, "disk": disk, "key": leaked}
        self.results["control"] = {
            "plaintext_hits": sum(control.values()),
            "document_hits": sum(shown),
            "key_hits": canaries.search_folder(plain, [key])[key] if not self.arguments.provider else 1,
            "captured_bytes": sum(sizes),
            "radio_bytes": by_radio,
            "searched_on_disk": sum(canaries.size(home) for home in homes),
        }
        self.steps.console.print(canary_table(self.results, len(needles), len(disk_needles)))
        if hop or disk or leaked:
            raise DemoFailed(f"found: {hop} words at the hop, {disk} on disk, the key {leaked} times")

    def control(self, said: canaries.Said, question: str, trace_id: str) -> Path:
        """The request without protection, through a recorder of the same kind: everything must be readable there.

        It goes to the stand-in itself; with a real provider, to a listener on this machine that answers alike. Returns
        the folder with what the links of the recording carried.
        """
        folder, sock = self.folder / "together-control", self.folder / "control.sock"
        self.recorder("control", f"unix:{sock}", f"unix:{self.radio}")
        with contextlib.ExitStack() as stack:
            port = (
                stack.enter_context(echo(said, self.results["relayed"]["answer"])) if self.arguments.provider else None
            )
            headers = {
                "Host": "localhost",
                "Authorization": f"Bearer {'none' if port else self.key_file.read_text().strip()}",
                "Content-Type": "application/json",
                "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01",
                "X-Device": f"spiffe://{TRUST_DOMAIN}/{self.device}",
                "Connection": "close",
            }
            requests = []
            for stream in (True, False):  # each way an answer can look
                messages = [{"role": "user", "content": question}]
                body = {"model": self.models[0], "stream": stream, "max_tokens": 24, "messages": messages}
                requests.append(http_request(headers, json.dumps(body).encode()))
            try:
                answers = asyncio.run(plain_radio.exchange(sock, self.radio, port or self.provider_port, requests))
            except (TransportError, OSError, TimeoutError) as error:
                raise DemoFailed(f"the plaintext control came to nothing: {error}") from None
        for answer in answers:
            if answer.split(b" ", 2)[1:2] != [b"200"]:
                raise DemoFailed(f"the plaintext control was answered with {answer[:60]!r}")
        radio_frames.put_together(self.folder / "capture-control", folder)
        whole = [("out", request) for request in requests] + [("back", answer) for answer in answers]
        if not all(radio_frames.holds(folder, direction, content) for direction, content in whole):
            raise DemoFailed("the plaintext control was not found in full by radio, so the search proves nothing")
        text = json_in(answers[-1].partition(b"\r\n\r\n")[2].decode())["choices"][0]["message"]["content"]
        pieces = canaries.windows(json.dumps(text, ensure_ascii=False)[1:-1])
        if not pieces or 0 in canaries.search_folder(folder / "link", pieces).values():
            raise DemoFailed("the plaintext control did not show its own answer, so the search proves nothing")
        return folder / "link"

    def show_how_to_play(self) -> None:
        folder = self.folder
        self.steps.console.print(
            f"""
[bold]Everything is still running.[/] In another terminal:

  export CAUSEWAY_HOME={folder}/edge CAUSEWAY_PASSPHRASE_FILE={folder}/keys/edge.passphrase
  {" ".join(self.prefix)} {EDGE} ask "How deep do I press in resuscitation of an adult?"
  {" ".join(self.prefix)} {EDGE} ask --relay "Write a haiku about a causeway."
  {" ".join(self.prefix)} {EDGE} status
  {RELAY} gateway devices {" ".join([*self.config, *self.keys("gateway")])}

What crossed the hop is in {folder}/capture-wan and {folder}/capture-radio (HCI; put together until the search
in {folder}/together-radio), logs are in {folder}/logs. The hop itself: {RELAY} hop status --home {folder}/hop
Process ids: {", ".join(f"{name} {pid}" for name, pid in self.processes.pids().items())}
[bold]Ctrl-C stops everything and removes the folder.[/]""",
            highlight=False,
            soft_wrap=True,
        )

    def play(self) -> None:
        tasks = [
            self.start_provider,
            self.start_gateway,
            self.start_radio,
            self.start_hop,
            self.confine_edge,
            self.join_edge,
            self.ingest,
            self.ask_locally,
            self.ask_relayed,
            self.follow_trace,
            self.search,
        ]
        for name, task in zip(STEPS, tasks, strict=True):
            self.steps.next(name)
            task()


def http_request(headers: dict[str, str], body: bytes) -> bytes:
    """A request for a completion, as it lies on the wire."""
    lines = ["POST /v1/chat/completions HTTP/1.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def json_in(output: str) -> Any:
    """The JSON document a command printed last."""
    try:
        return json.loads(output)
    except ValueError:
        raise DemoFailed(f"expected JSON, got: {output[-500:]!r}") from None


def picture(console: Console) -> str:
    """What was shown, as SVG that loads nothing from elsewhere: rich's web font gives way to the reader's own."""
    return re.sub(r"(?s)\s*@font-face \{.*?\}", "", console.export_svg(title="scripts/demo"))


def interrupted(number: int, frame: object) -> None:
    """The first signal ends the run; further ones must not cut short the ending of what was started."""
    for each in ENDINGS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Provider, gateway, hop and edge as separate processes on this machine, the edge without any "
        "network but (virtual) Bluetooth: a local answer with a citation, a relayed one, its trace, and proof that the "
        "hop saw nothing. Ends within a minute.",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON on standard output")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    parser.add_argument("--provider", metavar="URL", help="base URL of a real OpenAI-compatible provider")
    parser.add_argument("--key-file", type=Path, metavar="F", help="file that holds the provider's key")
    parser.add_argument("--model", default="gpt-4o-mini", help="model to ask a real provider for (default %(default)s)")
    parser.add_argument("--svg", type=Path, metavar="F", help="also write the run as a picture")
    arguments = parser.parse_args()
    if (arguments.provider is None) != (arguments.key_file is None):
        parser.error("--provider and --key-file belong together")
    if arguments.provider is not None and not arguments.provider.startswith(("https://", "http://")):
        parser.error("--provider is the base of an API, for example https://HOST/v1")
    if arguments.key_file is not None and not arguments.key_file.is_file():
        parser.error(f"there is no file {arguments.key_file}")
    return arguments


def main() -> int:
    arguments = parse()
    for number in ENDINGS:
        signal.signal(number, interrupted)
    console = Console(stderr=arguments.json, record=arguments.svg is not None, width=112 if arguments.svg else None)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        # Names of Unix sockets end at 107 characters, so a long temporary folder does not serve.
        base = None if len(tempfile.gettempdir()) < 48 else "/tmp"  # noqa: S108  (a private folder is made in it)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="causeway-demo-", dir=base)))
        logs = folder / "logs"
        logs.mkdir()
        processes = Processes(logs)
        stack.callback(processes.stop)
        try:
            demo = Demo(folder, processes, Steps(console, STEPS), arguments)
            demo.play()
            console.print(f"done in {time.monotonic() - began:.0f} s")
            if arguments.svg:
                arguments.svg.write_text(picture(console))
            if arguments.json:
                print(json.dumps(demo.results), flush=True)
            if arguments.keep:
                demo.show_how_to_play()
                while True:
                    signal.pause()
        except DemoFailed as error:
            console.print(f"[bold red]demo failed:[/] {escape(str(error))}", soft_wrap=True)
            return 1
        except KeyboardInterrupt:
            console.print("stopping everything")
            return 0 if arguments.keep else 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
