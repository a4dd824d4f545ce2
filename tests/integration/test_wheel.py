"""The wheel in an environment without DVC and MLflow: the snippets of the API page run, and nothing asks for those."""

import subprocess
import sys
import sysconfig
import venv
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from tests.language_models import write_tiny_lm
from tests.tiny import write_tiny_qwen_vl
from tests.unit.lowrank.caches import write_pictures

BLOCKED = "dvc", "mlflow", "pathspec"
BLOCKER = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.partition(".")[0] in {BLOCKED} else find(name, *rest)
)
"""
SNIPPETS = """
import torch, transformers
import subspacelab as sl
assert "site-packages" in sl.__file__ and sl.__file__.startswith({venv!r}), sl.__file__
a, b = sl.open_checkpoint("lm"), sl.open_checkpoint("other")
diff = sl.rotation.compare(a, b, null_draws=2)
assert len(diff.layers)
diff.plot("angles").savefig("angles.png")
diff.save("out")
for name, svd in sl.rotation.decompose(a, rank=4, include="q_proj"):
    assert svd.S.shape == (4,)
x = sl.lowrank.extract(sl.open_checkpoint("vl"), "pictures", image_size=112)
net = sl.lowrank.train(x, arch="Sketch", rank=4, settings=sl.lowrank.TrainLowrankConfig(epochs=1, device="cpu"))
A, B, X_hat = net(x[0])
print(sl.lowrank.compare(x, [net]).table)
model = transformers.AutoModelForCausalLM.from_pretrained("lm")
windows = torch.randint(0, 12, (40, 16))
moments = sl.nullspace.calibrate(model, windows)
peft_model = sl.nullspace.add_adapter(model, moments, method="lora_null_v2", rank=4)
print(sl.nullspace.verify(peft_model, windows).to_frame())
peft_model.save_pretrained("adapter")
print(sl.norms.analyze("lm").norms)
"""


@pytest.mark.slow
def test_the_wheel_alone_runs_the_api(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", ".", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "dist"]
    subprocess.run(build, check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith("METADATA"))
        message = Parser().parsestr(archive.read(metadata).decode())
    assert {"subspacelab/py.typed", "subspacelab/__init__.pyi", "subspacelab/rotation/__init__.pyi"} <= set(names)
    assert not [name for name in names if not name.startswith("subspacelab")]
    core = [line for line in message.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in core if line.startswith(BLOCKED)]

    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = next((home / "lib").glob("python*/site-packages"))
    with ZipFile(wheel) as archive:
        archive.extractall(site)
    # The libraries are this environment's: downloading them again would prove nothing more.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    (site / "sitecustomize.py").write_text(BLOCKER)
    write_tiny_lm(tmp_path / "lm")
    write_tiny_lm(tmp_path / "other", seed=1)
    write_tiny_qwen_vl(tmp_path / "vl")
    write_pictures(tmp_path / "pictures", 12)
    snippets = SNIPPETS.replace("{venv!r}", repr(str(home)))
    plain = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run([python, "-c", snippets], cwd=tmp_path, check=True, env=plain)
    said = subprocess.check_output([python, "-m", "subspacelab", "--help"], cwd=tmp_path, env=plain, text=True)
    assert "rotation" in said
