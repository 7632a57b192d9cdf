"""Which way imports go: read from the source files, not from a running program."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data_process", "metrics", "videonarrator")

FACTS = tuple(
    f"videonarrator.{name}"
    for name in ("schema", "storyline", "timeline", "length", "fingerprint", "journal", "quiet", "version")
)
PROMPT, MEMORY, CLIP_INPUTS, PACKING, CONFIG, WEIGHT_FILES = (
    f"videonarrator.{name}"
    for name in ("prompt", "visual_memory", "clip_inputs", "packing", "config", "weight_files")
)

SPEECH = "videonarrator.speech"

# Of the project, these modules import these only (a name stands for all that lies below it, too).
ALLOWED = {
    **dict.fromkeys(FACTS, FACTS),
    PROMPT: FACTS,
    MEMORY: FACTS,
    CONFIG: (*FACTS, PROMPT),
    CLIP_INPUTS: (*FACTS, PROMPT, MEMORY),
    PACKING: (*FACTS, PROMPT, MEMORY, CLIP_INPUTS),
    "videonarrator.dataset": (*FACTS, PROMPT, MEMORY, CLIP_INPUTS, PACKING),
    "videonarrator.modeling": ("videonarrator.modeling",),
    WEIGHT_FILES: FACTS,
    SPEECH: (SPEECH, *FACTS, CONFIG),
    "data_process": ("data_process", *FACTS, PROMPT, MEMORY, CONFIG, WEIGHT_FILES),
    "metrics": ("metrics", *FACTS),
}
FORBIDDEN = {
    "videonarrator.training": ("videonarrator.generation", "data_process", "metrics"),
    "videonarrator.generation": (
        "videonarrator.training",
        "videonarrator.dataset",
        "data_process",
        "metrics",
    ),
    "videonarrator.checkpoint": ("videonarrator.training", "videonarrator.generation", "data_process"),
}
STDLIB_ONLY = (*FACTS, PROMPT)
NO_PATHS = ("videonarrator.modeling",)  # ids and tensors only
COMMANDS = ("videonarrator.cli", "scripts")
MAY_CALL_COMMANDS = (*COMMANDS, "videonarrator.__main__")


def below(module, names):
    return any(module == name or module.startswith(name + ".") for name in names)


def read_graph(root, packages=PACKAGES):
    """Module -> everything it imports, imports inside functions and for type checking included."""
    files = {}
    for package in packages:
        for file in (root / package).rglob("*.py"):
            parts = file.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    graph = {}
    for module, file in files.items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        found = graph[module] = set()
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                source = node.module or ""
                if node.level:
                    above = package.split(".")[: len(package.split(".")) - node.level + 1]
                    source = ".".join([*above, *filter(None, [source])])
                # `from package import module` imports the module; `from module import name` only that module
                found |= {
                    f"{source}.{n.name}" if f"{source}.{n.name}" in files else source for n in node.names
                }
    return graph


def violations(graph):
    wrong = []
    for module, imports in sorted(graph.items()):
        for name in sorted(imports):
            ours = below(name, (*PACKAGES, "scripts")) and name != "videonarrator"
            external = name.partition(".")[0]
            broken = [
                below(module, [who]) and ours and not below(name, whom) for who, whom in ALLOWED.items()
            ]
            broken += [below(module, [who]) and below(name, whom) for who, whom in FORBIDDEN.items()]
            broken.append(below(name, COMMANDS) and not below(module, MAY_CALL_COMMANDS))
            stdlib = external in sys.stdlib_module_names or external == "videonarrator"
            broken.append(below(module, STDLIB_ONLY) and not stdlib)
            broken.append(below(module, NO_PATHS) and external in ("pathlib", "os"))
            if any(broken):
                wrong.append(f"{module} imports {name}")
    return wrong


def test_imports_go_one_way():
    graph = read_graph(ROOT)
    assert "videonarrator.prompt" in graph["videonarrator.clip_inputs"]  # the graph is not empty
    assert violations(graph) == []


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("videonarrator/schema.py", "import torch", "videonarrator.schema imports torch"),
        ("videonarrator/length.py", "def f():\n    import numpy as np", "videonarrator.length imports numpy"),
        (
            "videonarrator/prompt.py",
            "from videonarrator import config",
            "videonarrator.prompt imports videonarrator.config",
        ),
        (
            "videonarrator/modeling/narrator.py",
            "from ..prompt import Template",
            "videonarrator.modeling.narrator imports videonarrator.prompt",
        ),
        (
            "videonarrator/modeling/__init__.py",
            "from pathlib import Path",
            "videonarrator.modeling imports pathlib",
        ),
        (
            "videonarrator/length.py",
            "from videonarrator.speech import default_rate",
            "videonarrator.length imports videonarrator.speech",
        ),
        ("metrics/fit.py", "import videonarrator.prompt", "metrics.fit imports videonarrator.prompt"),
        (
            "data_process/shots.py",
            "from videonarrator.clip_inputs import encode",
            "data_process.shots imports videonarrator.clip_inputs",
        ),
        (
            "videonarrator/generation.py",
            "from videonarrator.cli import main",
            "videonarrator.generation imports videonarrator.cli",
        ),
        ("data_process/x.py", "import scripts.benchmark", "data_process.x imports scripts.benchmark"),
        (
            "videonarrator/dataset.py",
            "from data_process.feature_store import ClipStore",
            "videonarrator.dataset imports data_process.feature_store",
        ),
    ],
)
def test_wrong_imports_are_seen(tmp_path, file, line, wrong):
    for package in (
        "data_process",
        "metrics",
        "videonarrator",
        "videonarrator/cli",
        "videonarrator/modeling",
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    for name in ("config", "prompt", "clip_inputs", "schema"):
        (tmp_path / "videonarrator" / f"{name}.py").write_text("import json\n")
    (tmp_path / "videonarrator/cli/__init__.py").write_text("import metrics\nimport data_process\n")
    (tmp_path / "data_process/feature_store.py").write_text("import torch\n")
    assert violations(read_graph(tmp_path)) == []
    (tmp_path / file).write_text(line + "\n")
    assert violations(read_graph(tmp_path)) == [wrong]


def pulls_in_torch(statement):
    code = f"import sys\n{statement}\nprint('torch' in sys.modules)"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    return result.stdout.strip() == "True"


def test_light_imports_stay_light():
    light = [*FACTS, PROMPT, CONFIG, CLIP_INPUTS, "metrics", "data_process.annotations"]
    light += [SPEECH, *(f"{SPEECH}.{name}" for name in ("fitting", "audio", "engine"))]
    assert not pulls_in_torch("import videonarrator")
    assert not pulls_in_torch("import " + ", ".join(light))
    assert pulls_in_torch("import videonarrator.visual_memory")
