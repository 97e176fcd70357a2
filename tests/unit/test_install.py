# SPDX-License-Identifier: LGPL-2.1-or-later
"""contrib/: the installer against small trees of its own, and what the installed files say about each other.

Nothing here needs a network: the wheels are made by the tests. That the units, the rule and the policy do on a host
what they say is shown in the lab.
"""

import hashlib
import importlib.util
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from bridge import authorize, details, images, policy
from bridge.machined import READS
from bridge.methods import METHODS as TABLE

TREE = Path(__file__).resolve().parents[2]
CONTRIB = TREE / "contrib"
METHODS = set(re.findall(r"^method (\w+)\(", (TREE / "io.machine1.varlink").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The installer, over a source tree with one package of two modules and a small service."""
    specification = importlib.util.spec_from_file_location("machine1_bridge_install", CONTRIB / "install.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    tree = tmp_path / "tree"
    for name in (*module.DATA_FILES, "contrib/machine1-bridge", "contrib/policy/default.toml"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((TREE / name).read_bytes() if (TREE / name).exists() else b"a licence\n")
    (tree / "bridge" / "tests").mkdir(parents=True)
    (tree / "bridge" / "__init__.py").write_text("")
    (tree / "bridge" / "__main__.py").write_text("import small\n\ndef main():\n    print(small.WORD)\n    return 7\n")
    (tree / "bridge" / "contract.json").write_text("{}")
    (tree / "bridge" / "tests" / "test_x.py").write_text("")
    monkeypatch.setattr(module, "TREE", tree)
    monkeypatch.setattr(module, "REQUIREMENTS", tree / "contrib" / "requirements.txt")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    members = {"small.py": "WORD = 'first'\n", "small_extra.py": "", "small.pyi": "", "small_tests/tests/a.py": ""}
    provide(module, members)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system without Python."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def provide(installer: ModuleType, members: dict[str, str]) -> None:
    """Pins one package with these members, and lays it into the cache as if it had been downloaded."""
    wheel = installer.TREE.parent / "small-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("small-1.dist-info/METADATA", "Name: small\n")
        archive.writestr("small-1.dist-info/licenses/LICENSE", "a licence\n")
        archive.writestr("small-1.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lines = f'small==1 \\\n    --hash=sha256:{digest}\nold==1; python_version < "3.2" \\\n    --hash=sha256:{digest}\n'
    installer.REQUIREMENTS.write_text(lines)
    target = installer.find_target(str(installer.TREE), "/usr", None)
    key = hashlib.sha256("\n".join(installer.locked(target.python)).encode()).hexdigest()[:12]
    folder = Path(
        os.environ["XDG_CACHE_HOME"], "machine1-bridge", "wheels", f"{key}-{target.tag}-{target.architecture}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    wheel.rename(folder / wheel.name)


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def run(installer: ModuleType, action: str, root: Path, *options: str) -> int:
    status: int = installer.main([action, "--destdir", str(root), *options])
    return status


def fake_python(root: Path, version: str, machine: int = 183, byte_order: str = "little") -> None:
    """A system whose python3 is an alternative, by absolute links, and an ELF program for `machine`."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "etc/alternatives").mkdir(parents=True)
    marks = b"\x02\x01" if byte_order == "little" else b"\x02\x02"
    header = b"\x7fELF" + marks + bytes(12) + machine.to_bytes(2, "little" if byte_order == "little" else "big")
    (root / f"usr/bin/python{version}").write_bytes(header)
    (root / "usr/bin/python3").symlink_to("/etc/alternatives/python3")
    (root / "etc/alternatives/python3").symlink_to(f"../../usr/bin/python{version}")


def test_python_of_the_destination(installer: ModuleType, root: Path) -> None:
    fake_python(root, "3.14")
    target = installer.find_target(str(root), "/usr", None)
    assert (target.python, target.architecture, target.interpreter) == ((3, 14), "aarch64", "/usr/bin/python3.14")


def test_staging_takes_the_version_asked_for_or_this_one(installer: ModuleType, root: Path) -> None:
    assert installer.find_target(str(root), "/usr", "3.13").python == (3, 13)
    assert installer.find_target(str(root), "/usr", None).python == sys.version_info[:2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--destdir", "nowhere"], "DESTDIR nowhere: no such folder"),
        (["--python-version", "3.10"], "Python 3.10 is too old"),
        (["--python-version", "three"], "expected a version such as 3.13"),
        (["--prefix", "usr"], "not the absolute path"),
        (["--prefix", "/"], "not the absolute path"),
        (["--prefix", "/usr\n[Service]"], "not the absolute path"),
    ],
)
def test_bad_input_is_one_line(
    installer: ModuleType, root: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(installer, "install", root, *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("machine1-bridge: ")
    assert contents(root) == set()


def test_python_too_old_or_another_than_asked_for(
    installer: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_python(root, "3.9")
    assert run(installer, "install", root) == 1
    assert "Python 3.9 is too old" in capsys.readouterr().err
    assert run(installer, "install", root, "--python-version", "3.13") == 1
    assert "has python3.9" in capsys.readouterr().err


def test_python_that_is_a_loop(installer: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/python3").symlink_to("python3")
    assert run(installer, "install", root) == 1
    assert "loop" in capsys.readouterr().err


def test_installed_files(installer: ModuleType, root: Path) -> None:
    old = os.umask(0o077)
    try:
        assert run(installer, "install", root) == 0
    finally:
        os.umask(old)
    library = root / "usr/lib/machine1-bridge"
    tag = sys.implementation.cache_tag
    assert {path for path in contents(library) if "dist-info" not in path} == {
        "MANIFEST",
        "machine1-bridge",
        "default.toml",
        "small.py",
        "small_extra.py",
        "__pycache__",
        f"__pycache__/small.{tag}.pyc",
        f"__pycache__/small_extra.{tag}.pyc",
        "bridge",
        "bridge/__init__.py",
        "bridge/__main__.py",
        "bridge/contract.json",
        "bridge/__pycache__",
        f"bridge/__pycache__/__init__.{tag}.pyc",
        f"bridge/__pycache__/__main__.{tag}.pyc",
    }
    assert {path for path in contents(library / "small-1.dist-info") if path != "licenses"} == {
        "METADATA",
        "licenses/LICENSE",
    }
    assert os.readlink(root / "usr/bin/machine1-bridge") == "../lib/machine1-bridge/machine1-bridge"
    for path in root.rglob("*"):
        executable = path.is_dir() or path == library / "machine1-bridge"
        if not path.is_symlink() and path.parent.name != "__pycache__":
            assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path == library or executable else 0o644), path


def test_launcher_runs_with_what_is_beside_it(installer: ModuleType, root: Path) -> None:
    """With -IS and byte code that never looks at the source: a changed source changes nothing."""
    prefix = str(root / "usr")
    assert installer.main(["install", "--prefix", prefix, "--destdir", "/", "--python-version", version()]) == 0
    library = Path(prefix, "lib/machine1-bridge")
    (library / "small.py").write_text("WORD = 'changed'\n")
    result = subprocess.run(
        [sys.executable, "-IS", str(library / "machine1-bridge")], capture_output=True, text=True, check=False
    )
    assert (result.stdout, result.stderr, result.returncode) == ("first\n", "", 7)


def version() -> str:
    """The version of this system's python3 where it has one, as the installer insists on it."""
    interpreter = Path("/usr/bin/python3").resolve()
    match = re.fullmatch(r"python(3\.\d+)", interpreter.name)
    return match[1] if match else f"3.{sys.version_info[1]}"


def test_launcher_names_another_version(installer: ModuleType, root: Path) -> None:
    text = installer.adapted(CONTRIB / "machine1-bridge", installer.find_target(str(root), "/usr", "3.99")).decode()
    result = subprocess.run([sys.executable, "-IS", "-c", text], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "another version of Python" in result.stderr


def test_prefix_is_in_the_unit_and_the_launcher(
    installer: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(installer, "install", root, "--prefix", "/usr/local/") == 0
    unit = (root / "usr/local/lib/systemd/system/machine1-bridge.service").read_text()
    assert "ExecStart=/usr/local/lib/machine1-bridge/machine1-bridge\n" in unit
    assert '"/usr/local/lib/machine1-bridge"' in (root / "usr/local/lib/machine1-bridge/machine1-bridge").read_text()
    assert not (root / "usr/lib").exists()
    assert "not every system reads /usr/local/share/polkit-1" in capsys.readouterr().out


def test_upgrade_leaves_nothing_stale(installer: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = dict(installer.DATA_FILES) | {"LICENSE": "share/doc/machine1-bridge-old/COPYING"}
    with monkeypatch.context() as context:
        context.setattr(installer, "DATA_FILES", older)
        assert run(installer, "install", root) == 0
    (root / "usr/lib/machine1-bridge/leftover.py").write_text("")
    provide(installer, {"small.py": "WORD = 'second'\n"})
    assert run(installer, "install", root) == 0
    after = contents(root)
    assert not {path for path in after if "leftover" in path or "small_extra" in path or "-old" in path}
    assert (root / "usr/lib/machine1-bridge/small.py").read_text() == "WORD = 'second'\n"
    assert run(installer, "install", root) == 0
    assert contents(root) == after


def test_uninstall_takes_what_was_installed_and_nothing_else(installer: ModuleType, root: Path) -> None:
    others = ["usr/lib/systemd/system/other.service", "usr/bin/other", "usr/share/man/man8/other.8"]
    for other in others:
        (root / other).parent.mkdir(parents=True)
        (root / other).write_text("")
    before = contents(root)
    assert run(installer, "install", root) == 0
    assert run(installer, "install", root) == 0
    (root / f"usr/lib/machine1-bridge/__pycache__/small.cpython-{sys.version_info[0]}99.pyc").write_bytes(b"")
    assert run(installer, "uninstall", root) == 0
    assert contents(root) == before
    assert run(installer, "uninstall", root) == 1


def test_uninstall_leaves_a_file_that_someone_put_there(installer: ModuleType, root: Path) -> None:
    assert run(installer, "install", root) == 0
    (root / "usr/lib/machine1-bridge/notes").write_text("mine")
    assert run(installer, "uninstall", root) == 0
    assert contents(root) == {"usr", "usr/lib", "usr/lib/machine1-bridge", "usr/lib/machine1-bridge/notes"}


def test_uninstall_refuses_a_manifest_that_leaves_the_prefix(
    installer: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(installer, "install", root) == 0
    (root / "passwd").write_text("")
    (root / "usr/lib/machine1-bridge/MANIFEST").write_text("f /usr/../passwd\n")
    assert run(installer, "uninstall", root) == 1
    assert "unexpected line" in capsys.readouterr().err
    assert (root / "passwd").exists()


@pytest.mark.parametrize("earlier", [False, True])
def test_failed_installation_changes_nothing(
    installer: ModuleType, root: Path, earlier: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if earlier:
        assert run(installer, "install", root) == 0
    before = contents(root)
    provide(installer, {"small.py": "", "../outside.py": ""})
    assert run(installer, "install", root) == 1
    assert "would not lie beside" in capsys.readouterr().err
    assert contents(root) == before


def test_wheel_that_is_not_the_pinned_one(
    installer: ModuleType, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (wheel,) = (tmp_path / "cache").rglob("*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    assert run(installer, "install", root) == 1
    assert "is not what requirements.txt names" in capsys.readouterr().err
    assert contents(root) == set()


def test_no_wheel_for_this_python(
    installer: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pip without an index finds none: what it says last comes through, in one line."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(root))
    assert run(installer, "install", root, "--python-version", "3.98") == 1
    error = capsys.readouterr().err
    assert "cannot get the Python packages" in error
    assert "small==1" in error
    assert error.count("\n") == 1
    assert contents(root) == set()


def test_incomplete_source_tree(installer: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (installer.TREE / "bridge/contract.json").unlink()
    assert run(installer, "install", root) == 1
    assert "bridge/contract.json is missing" in capsys.readouterr().err
    assert contents(root) == set()


# --- the files of contrib/ themselves


def settings(name: str) -> dict[str, list[str]]:
    """The settings of a unit file by name; one may be given several times."""
    found: dict[str, list[str]] = {}
    for line in (CONTRIB / "systemd" / name).read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def test_units_name_the_agreed_paths() -> None:
    socket, service = settings("machine1-bridge.socket"), settings("machine1-bridge.service")
    assert socket["ListenStream"] == ["/run/machine1/io.machine1"]
    assert socket["SocketMode"] == ["0666"]
    assert socket["Symlinks"] == ["/run/varlink/registry/io.machine1"]
    assert service["ExecStart"] == ["/usr/lib/machine1-bridge/machine1-bridge"]
    assert service["User"] == ["machine1-bridge"]
    assert service["Type"] == ["notify"]
    # A limit of starts would close the socket for good; a limit of lines would make holes in the audit trail.
    assert service["StartLimitIntervalSec"] == ["0"]
    assert service["LogRateLimitIntervalSec"] == ["0"]
    assert "PrivateUsers" not in service  # the users of clients would all be nobody
    account = (CONTRIB / "sysusers/machine1-bridge.conf").read_text(encoding="utf-8").splitlines()[-1]
    assert account.split()[:3] == ["u", "machine1-bridge", "-"]


def test_units_of_sandboxes_are_as_locked_up_and_harder_to_reach() -> None:
    socket, service = settings("machine1-bridge@.socket"), settings("machine1-bridge@.service")
    assert socket["ListenStream"] == ["/run/machine1/sandbox/%i"]
    assert socket["FileDescriptorName"] == ["%i"]
    assert socket["SocketMode"] == ["0600"]
    assert socket["AssertPathExists"] == ["/etc/machine1-bridge/%i.toml"]
    assert "Symlinks" not in socket
    assert service["ExecStart"] == ["/usr/lib/machine1-bridge/machine1-bridge --policy=%i"]
    # All else is that of the main service.
    own = {"Description", "Requires", "ExecStart"}
    main = settings("machine1-bridge.service")
    assert {key: value for key, value in service.items() if key not in own} == {
        key: value for key, value in main.items() if key not in own | {"Also", "WantedBy"}
    }


def test_the_installed_policy_is_found_beside_the_program_and_has_no_mistake(installer: ModuleType, root: Path) -> None:
    assert run(installer, "install", root) == 0
    installed = (root / "usr/lib/machine1-bridge/default.toml").read_bytes()
    assert installed == (CONTRIB / "policy/default.toml").read_bytes()
    shipped = policy.parse(installed, policy.DEFAULT, "default.toml")
    assert shipped.polkit_required
    example = (root / "usr/share/doc/machine1-bridge/example-sandbox.toml").read_bytes()
    policy.parse(example, "example-sandbox", "example-sandbox.toml")


@pytest.mark.parametrize(
    "name", ["machine1-bridge@.service", "machine1-bridge@.socket", "io.machine1.policy", "security.md"]
)
def test_what_authorizes_is_installed(installer: ModuleType, root: Path, name: str) -> None:
    assert run(installer, "install", root) == 0
    places = {
        "machine1-bridge@.service": "usr/lib/systemd/system",
        "machine1-bridge@.socket": "usr/lib/systemd/system",
        "io.machine1.policy": "usr/share/polkit-1/actions",
        "security.md": "usr/share/doc/machine1-bridge",
    }
    assert (root / places[name] / name).is_file()
    assert list(root.rglob(name)) == [root / places[name] / name]


def test_bus_policy_lets_through_what_the_service_calls_and_nothing_else() -> None:
    (rules,) = ElementTree.parse(CONTRIB / "dbus/machine1-bridge.conf").getroot()  # noqa: S314 (our own file)
    assert rules.attrib == {"user": "machine1-bridge"}
    # The last rule that fits wins: what is denied comes first.
    deny, heard, allow = rules[:3], rules[3:11], rules[11:]
    assert {rule.tag for rule in deny} == {"deny"}
    assert [rule.attrib for rule in deny] == [
        {"send_type": "method_call"},
        {"receive_type": "method_call"},
        {"receive_type": "signal"},
    ]
    # From the bus itself, what it tells each client and who machined is; from machined, who comes and goes; from
    # systemd, which jobs have ended; from importd, what it does and which transfers have ended.
    bus = {"receive_sender": "org.freedesktop.DBus", "receive_interface": "org.freedesktop.DBus"}
    assert [rule.attrib for rule in heard] == [
        bus | {"receive_member": "NameAcquired"},
        bus | {"receive_member": "NameLost"},
        bus | {"receive_member": "NameOwnerChanged"},
        *(
            {
                "receive_sender": "org.freedesktop.machine1",
                "receive_interface": "org.freedesktop.machine1.Manager",
                "receive_type": "signal",
                "receive_member": member,
            }
            for member in ("MachineNew", "MachineRemoved")
        ),
        {
            "receive_sender": "org.freedesktop.systemd1",
            "receive_interface": "org.freedesktop.systemd1.Manager",
            "receive_type": "signal",
            "receive_member": "JobRemoved",
        },
        *(
            {
                "receive_sender": "org.freedesktop.import1",
                "receive_interface": f"org.freedesktop.import1.{of}",
                "receive_type": "signal",
                "receive_member": member,
            }
            for of, member in (("Manager", "TransferRemoved"), ("Transfer", "LogMessage"))
        ),
    ]
    assert {rule.tag for rule in (*heard, *allow)} == {"allow"}
    assert {tuple(sorted(rule.attrib)) for rule in allow} == {("send_destination", "send_interface", "send_member")}
    allowed = [
        (rule.attrib["send_destination"], rule.attrib["send_interface"], rule.attrib["send_member"]) for rule in allow
    ]

    def called(module: str) -> set[str]:
        return set(re.findall(r'"([A-Z]\w+)"', (TREE / f"bridge/{module}.py").read_text(encoding="utf-8")))

    def members() -> set[str]:
        """Of the manager: where the modules of the methods name them."""
        called_ = re.compile(r'\.call\(\s*"(\w+)"|_(?:copy|open_terminal|map_from|map_to)\(\s*machined,\s*"(\w+)"')
        found = {
            name
            for module in ("machines", "inside", "images")
            for match in called_.findall((TREE / f"bridge/{module}.py").read_text(encoding="utf-8"))
            for name in match
            if name
        }
        copies = {f"{name}WithFlags" for name in found if name.startswith("Copy")}
        pieces = {member for _, member, _, _ in details._MEMBERS} | {each for _, each, _ in images._PIECES if each}
        return found | copies | pieces

    transfers = called("transfers") | {"ListTransfers", "ListTransfersEx", "CancelTransfer"}
    machine1, polkit = "org.freedesktop.machine1", "org.freedesktop.PolicyKit1"
    import1 = "org.freedesktop.import1"
    assert called("polkit") == {"CheckAuthorization", "CancelCheckAuthorization"}
    assert sorted(allowed) == sorted(
        [
            ("org.freedesktop.DBus", "org.freedesktop.DBus", "Hello"),
            ("org.freedesktop.DBus", "org.freedesktop.DBus", "AddMatch"),
            ("org.freedesktop.DBus", "org.freedesktop.DBus", "RemoveMatch"),
            ("org.freedesktop.DBus", "org.freedesktop.DBus", "GetNameOwner"),
            ("org.freedesktop.DBus", "org.freedesktop.DBus", "GetConnectionUnixProcessID"),
            (machine1, "org.freedesktop.DBus.Properties", "GetAll"),
            ("org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager", "StartUnit"),
            *((machine1, f"{machine1}.Manager", each) for each in members() | READS.keys()),
            *((import1, f"{import1}.Manager", each) for each in transfers),
            *((polkit, f"{polkit}.Authority", each) for each in called("polkit")),
        ]
    )


def test_polkit_rule_names_the_guarded_methods() -> None:
    """Each guarded method of the interface is the shell or one of the verbs that machined puts into the details."""
    rule = (CONTRIB / "polkit/10-machine1-bridge.rules").read_text(encoding="utf-8")
    lists = {
        action: set(re.findall(r'"(\w+)"', verbs))
        for action, verbs in re.findall(r'"org\.freedesktop\.machine1\.([\w-]+)": \[([^]]*)\]', rule)
    }
    assert lists == {
        "manage-machines": {
            "kill", "terminate", "unregister", "copy", "bind", "open_root_directory", "set_pool_limit", "clean_pool",
        },
        "manage-images": {"clone", "rename", "remove", "mark_read_only", "set_limit"},
    }  # fmt: skip
    whole = {"OpenMachineShell": "shell", "OpenMachineLogin": "login", "OpenMachinePTY": "open-pty"}
    assert set(re.findall(r'"([\w-]+)"', rule.partition("var actions = [")[2].partition("]")[0])) == {
        *whole.values(), "inspect-machines",
    }  # fmt: skip
    # By signals and by systemd itself, whose action is another.
    other = {"PoweroffMachine", "RebootMachine", "StartMachine"}
    assert '["import", "export", "pull", "cancel"]' in rule  # importd has an action for each kind
    other |= {f"{way}{kind}" for way in ("Import", "Export", "Pull") for kind in ("Tar", "Raw")} | {"CancelTransfer"}
    guarded = {name.removeprefix("io.machine1.") for name, method in TABLE.items() if method.guarded}
    verbs = set().union(*lists.values())
    names = {method: method.lower() for method in guarded - whole.keys() - other}
    names["OpenMachineRootDirectory"] = "open_root_directory"
    names |= {"MarkImageReadOnly": "mark_read_only", "SetImageLimit": "set_limit"}
    names |= {"SetPoolLimit": "set_pool_limit", "CleanPool": "clean_pool"}
    assert {verb for verb in verbs for name in names.values() if name.startswith(verb)} == verbs
    assert all(any(name.startswith(verb) for verb in verbs) for name in names.values())
    assert re.findall(r"Result\.(\w+)", rule) == ["NOT_HANDLED", "YES", "NO", "YES", "YES", "YES", "NO"]


def test_polkit_has_the_actions_that_the_service_asks_about() -> None:
    """Each is the service's own, which could not ask about others otherwise; nobody gets one without a password."""
    root = ElementTree.parse(CONTRIB / "polkit/io.machine1.policy").getroot()  # noqa: S314 (our own file)
    actions = {action.attrib["id"]: action for action in root.iter("action")}
    asked = {action for action, _ in authorize.ACTIONS.values()} | {"io.machine1.open-host-shell"}
    assert set(actions) == asked
    for action in actions.values():
        assert [(note.attrib["key"], note.text) for note in action.iter("annotate")] == [
            ("org.freedesktop.policykit.owner", "unix-user:machine1-bridge")
        ]
        (defaults,) = action.iter("defaults")
        assert {rule.tag: rule.text for rule in defaults} == {
            "allow_any": "auth_admin",
            "allow_inactive": "auth_admin",
            "allow_active": "auth_admin_keep",
        }


def test_locked_packages_are_the_ones_that_the_project_depends_on() -> None:
    import tomllib

    project = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.split(r"[<>=!~; ]", line)[0] for line in project["dependencies"]}
    text = (CONTRIB / "requirements.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([\w-]+)==", text, re.MULTILINE))
    assert wanted <= pinned
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=\w)", text)[1:])


def test_nothing_is_written_where_a_link_leads_out_of_destdir(tmp_path: Path) -> None:
    """The system under DESTDIR is not trusted: an absolute link in it means a place on this machine."""
    victim, image = tmp_path / "victim", tmp_path / "image"
    victim.mkdir()
    (image / "usr").mkdir(parents=True)
    (image / "usr/lib").symlink_to(victim)
    done = subprocess.run(
        [sys.executable, str(CONTRIB / "install.py"), "install", "--destdir", str(image), "--prefix", "/usr"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "leads out of" in done.stderr
    assert list(victim.iterdir()) == []


def test_a_package_has_the_same_files_without_python_packages(
    installer: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are the system's: the program looks for them where they are, with any Python that is new enough."""
    arguments = ["stage", "--destdir", str(root), "--prefix", "/usr", "--packages", "/usr/lib/python3/dist-packages"]
    assert installer.main(arguments) == 0
    outside = capsys.readouterr().out.splitlines()
    data = {f"/usr/{inside}" for source, inside in installer.DATA_FILES.items() if source != "LICENSE"}
    assert set(outside) == data | {"/usr/bin/machine1-bridge"}
    library = root / "usr/lib/machine1-bridge"
    files = {str(path.relative_to(library)) for path in library.rglob("*") if path.is_file()}
    assert files == {
        "machine1-bridge", "default.toml", "bridge/__init__.py", "bridge/__main__.py", "bridge/contract.json"
    }  # fmt: skip
    program = (library / "machine1-bridge").read_text()
    assert 'sys.path = ["/usr/lib/machine1-bridge", *sys.path, "/usr/lib/python3/dist-packages"]' in program
    assert "if sys.version_info[:2] < (3, 11):" in program


def test_a_package_is_laid_into_an_empty_folder(
    installer: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "something").touch()
    arguments = ["stage", "--destdir", str(root), "--prefix", "/usr", "--packages", "/x"]
    assert installer.main(arguments) == 1
    assert capsys.readouterr().err == f"machine1-bridge: {root} is not empty\n"
    assert [path.name for path in root.iterdir()] == ["something"]


@pytest.mark.parametrize("arguments", [["stage"], ["install", "--packages", "/x"]])
def test_where_the_packages_are_is_for_stage(installer: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        installer.main(arguments)


def test_what_a_package_manager_installed_is_left_to_it(
    installer: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = root / "usr/lib/machine1-bridge"
    library.mkdir(parents=True)
    (library / "machine1-bridge").write_text("of a package")
    assert installer.main(["install", "--destdir", str(root), "--prefix", "/usr"]) == 1
    assert "is from a package of the system; remove that first" in capsys.readouterr().err
    assert [path.name for path in library.iterdir()] == ["machine1-bridge"]
