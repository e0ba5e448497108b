"""`scripts/gpu_host.sh`: which packages are carried and installed, and what its shim and stubs do to imports."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "scripts" / "gpu_host"


def load(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


packages = load(TOOLS / "packages.py")


def fairseq2_sources() -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of each module of the installed fairseq2."""
    spec = find_spec("fairseq2")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py")):
        yield ".".join(("fairseq2", *path.relative_to(root).with_suffix("").parts)), ast.parse(path.read_bytes())


def python(
    code: str, *paths: Path, flags: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs code with folders in front of its path; PYTHONPATH and nothing else is taken from here."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **environment}
    return subprocess.run([sys.executable, *flags, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_every_carried_package_is_pinned(version: str) -> None:
    pins = packages.pins((ROOT / "requirements.txt").read_text(), version)
    assert not set(packages.CARRIED) - set(pins)
    assert not set(packages.CARRIED) & set(packages.EXPECTED)
    extras = metadata.metadata("jepa-tok").get_all("Requires-Dist") or []
    assert f'fairseq2=={pins["fairseq2"]}; extra == "fairseq2"' in extras


def test_pins_are_those_of_the_hosts_python() -> None:
    text = "# made by uv\na==1 ; python_full_version < '3.11'\na==2 ; python_full_version >= '3.11'\nB.c==3 ; sys_platform == 'win32'\n"
    assert packages.pins(text, "3.10") == {"a": "1"}
    assert packages.pins(text, "3.12") == {"a": "2"}


def test_what_fairseq2_needs_is_carried_expected_or_stood_in_for() -> None:
    stood_in = {"wandb", "transformers", "tensorboard"}
    unused = {"s3fs", "mypy-extensions"}  # for URLs of S3; for type checkers
    for name in ("fairseq2", "fairseq2n", "soundfile", "universal-pathlib", "clusterscope", "importlib-metadata"):
        for line in metadata.requires(name) or []:
            requirement = packages.Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed = packages.canonicalize_name(requirement.name)
                assert needed in {*packages.CARRIED, *packages.EXPECTED, *stood_in, *unused}, f"{needed} of {name}"


def wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in files.items():
            archive.writestr(member, text)
    with (folder / packages.SUMS).open("a") as sums:
        sums.write(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n")
    return path


def test_only_what_the_host_lacks_is_installed(tmp_path: Path) -> None:
    for name in packages.CARRIED:
        wheel(tmp_path / "w", f"{name.replace('-', '_')}-1.0-py3-none-any.whl", {})
    wheels = packages.wheels_of(tmp_path / "w")
    host = {name: "7" for name in packages.EXPECTED} | {"click": "2.0", "fairseq2": "0.7", "fairseq2n": "1.0"}
    chosen = {path.name.split("-")[0] for path in packages.missing(wheels, host)}
    assert "fairseq2" in chosen and not {"click", "fairseq2n"} & chosen  # fairseq2 of another version is of no use
    assert "soxr" in chosen
    del host["scipy"], host["rich"]
    with pytest.raises(
        packages.BundleError, match=r"neither this host nor the bundle has scipy, rich; .*--add scipy rich"
    ):
        packages.missing(wheels, host)


def test_a_bundle_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(packages.BundleError, match=r"has no SHA256SUMS; make it with: scripts/gpu_host\.sh bundle"):
        packages.wheels_of(tmp_path)
    path = wheel(tmp_path / "w", "a-1-py3-none-any.whl", {})
    path.write_bytes(b"PK")
    with pytest.raises(packages.BundleError, match="is not as it was bundled"):
        packages.wheels_of(tmp_path / "w")
    path.unlink()
    with pytest.raises(packages.BundleError, match="is missing"):
        packages.wheels_of(tmp_path / "w")


def test_libraries_of_a_wheel_are_extracted(tmp_path: Path) -> None:
    path = wheel(tmp_path / "w", "tbb-1-py3-none-any.whl", {"tbb-1.data/data/lib/libtbb.so.12": "elf", "tbb-1.dist-info/METADATA": ""})  # fmt: skip
    packages.extract_libraries(path, tmp_path / "lib")
    assert [p.name for p in (tmp_path / "lib").iterdir()] == ["libtbb.so.12"]


def test_the_checkout_is_found_as_an_extension(tmp_path: Path) -> None:
    packages.describe(ROOT / "pyproject.toml", tmp_path)
    (found,) = metadata.distributions(path=[str(tmp_path)])
    points = {(p.group, p.name): p.value for p in found.entry_points}
    assert found.metadata["Name"] == "jepa-tok"
    assert points[("fairseq2.extension", "jepa_tok")] == "jepa_tok.extension:register"
    assert points == {(p.group, p.name): p.value for p in metadata.distribution("jepa-tok").entry_points}


@pytest.fixture
def other_torch(tmp_path: Path) -> Path:
    """A fairseq2n that checks the version of PyTorch, and a PyTorch of another one."""
    for name, text in {
        "torch/__init__.py": "__version__ = '2.11.0+cu130'",
        "torch/utils/__init__.py": "",
        "fairseq2n/config.py": "_TORCH_VERSION = '2.9.1+cu128'\n_SUPPORTS_IMAGE = True",
        "fairseq2n/__init__.py": "from fairseq2n.config import _TORCH_VERSION as wanted, _SUPPORTS_IMAGE\nimport torch\n"
        "if wanted.split('+')[0] != torch.__version__.split('+')[0]: raise RuntimeError(wanted)",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


# -S leaves site-packages out, so that this is a host without wandb and tensorboard; it leaves sitecustomize out, too.
BARE = ("-S",)


def test_the_check_of_the_version_passes_with_the_shim_alone(other_torch: Path) -> None:
    assert "RuntimeError: 2.9.1" in python("import fairseq2n", other_torch, flags=BARE).stderr
    code = "import sitecustomize, fairseq2n; c = fairseq2n.config; print(c._TORCH_VERSION, c.__file__, fairseq2n._SUPPORTS_IMAGE)"
    result = python(code, TOOLS / "site", other_torch, flags=BARE)
    assert result.stdout.split() == ["2.11.0+cu130", str(other_torch / "fairseq2n/config.py"), "True"], result.stderr


def test_a_version_that_agrees_is_left_alone(other_torch: Path) -> None:
    (other_torch / "torch/__init__.py").write_text("__version__ = '2.9.1+cpu'")
    code = "import sitecustomize, fairseq2n; print(fairseq2n.wanted)"
    assert python(code, TOOLS / "site", other_torch, flags=BARE).stdout.strip() == "2.9.1+cu128"


def test_stubs_have_all_that_fairseq2_names(other_torch: Path) -> None:
    lines, attributes = set(), set()
    for _, tree in fairseq2_sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "wandb":
                lines |= {f"from {node.module} import {alias.name}" for alias in node.names}
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("wandb."):
                attributes.add(ast.unparse(node))
    assert len(lines) >= 2 and "wandb.init" in attributes
    code = "\n".join(["import sitecustomize, wandb", *sorted(lines), *sorted(attributes), "print(wandb.__file__)"])
    result = python(code, TOOLS / "site", other_torch, flags=BARE)
    assert result.stdout.strip() == str(TOOLS / "stubs/wandb/__init__.py"), result.stderr


def test_wandb_and_tensorboard_say_that_they_are_missing(other_torch: Path) -> None:
    code = "import sitecustomize, wandb; from torch.utils.tensorboard import SummaryWriter\nSummaryWriter('exp/tb').add_scalar('loss', 1.0, 1)\nwandb.init(id=wandb.util.generate_id())"
    stderr = python(code, TOOLS / "site", other_torch, flags=BARE).stderr
    assert "tensorboard is not installed, so exp/tb gets no events" in stderr
    assert "RuntimeError: wandb is not installed here" in stderr


def test_an_installed_package_comes_before_its_stub(tmp_path: Path) -> None:
    for name in ("wandb", "tensorboard"):
        (tmp_path / f"{name}.py").write_text("")
    code = "import wandb, sitecustomize; print(wandb.__file__, sitecustomize.Finder().find_spec('torch.utils.tensorboard'))"
    assert python(code, TOOLS / "site", tmp_path).stdout.split() == [str(tmp_path / "wandb.py"), "None"]


def test_the_hosts_own_sitecustomize_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('host')")
    assert python("print('program')", TOOLS / "site", tmp_path).stdout.split() == ["host", "program"]


def test_transformers_is_kept_from_all_that_would_import_it() -> None:
    importing = {
        name
        for name, tree in fairseq2_sources()
        for node in [n for top in tree.body for n in ([top] if not isinstance(top, ast.Try) else top.body)]
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "transformers" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers")
    }
    text = (TOOLS / "site/sitecustomize.py").read_text()
    assert importing and all(f'"{name}"' in text for name in importing)


@pytest.mark.slow
def test_a_recipe_imports_beside_another_torch() -> None:
    code = """
import recipes, sys, torch

own = torch.__version__, torch.version.cuda
torch.__version__, torch.version.cuda = type(own[0])("9.9.0+cu130"), "13.0"
import fairseq2n

torch.__version__, torch.version.cuda = own  # torchaudio would find the pretence out
import recipes.jepa.recipe, fairseq2

fairseq2.init_fairseq2()
print("transformers" in sys.modules, fairseq2n.torch_version())
"""
    assert "fairseq2 requires a CUDA 12.8 build of PyTorch 2.9.1" in python(code, ROOT).stderr
    result = python(code, TOOLS / "site", ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-2:] == ["False", "9.9.0+cu130"]
