#!/usr/bin/env python3
"""A Jupyter notebook on a branch, executed without a browser: it opens the branch's files, is saved into the lake with
a checkpoint, as Jupyter does, and is executed again on another branch."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from clients import published
from lake import Lake, Tests

tests = Tests()
try:
    import ipykernel  # noqa: F401  # the kernel is another process
    import nbclient
    import nbformat
    import pandas
    import traitlets.config
except ImportError as error:
    tests.skip("Jupyter", str(error))
    tests.done()

CELLS = ("import pandas, pathlib\norders = pandas.read_csv('orders.csv')",
         "daily = orders.groupby('day').price.sum()\ndaily.to_frame().to_parquet('daily.parquet')\nint(daily.sum())",
         "str(pathlib.Path.cwd())")


def save(notebook, path):
    """As Jupyter's contents manager does: beside it, then renamed; the checkpoint is a copy."""
    beside = path.with_name(f".~{path.name}")
    with open(beside, "w", encoding="utf-8") as file:
        nbformat.write(notebook, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    checkpoints = path.parent / ".ipynb_checkpoints"
    checkpoints.mkdir(exist_ok=True)
    (checkpoints / f"{path.stem}-checkpoint.ipynb").write_bytes(path.read_bytes())


def execute(directory, config):
    """Open it there, run it there, save it there; what its cells showed."""
    path = directory / "report.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", config=config,
                            resources={"metadata": {"path": str(directory)}}).execute()
    save(notebook, path)
    return shown(path)


def shown(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [output["data"]["text/plain"] for cell in notebook.cells for output in cell.outputs]


with Lake() as lake:
    config = traitlets.config.Config(KernelManager={"transport": "ipc", "ip": str(lake.scratch / "kernel")})
    os.environ["IPYTHONDIR"] = os.environ["JUPYTER_RUNTIME_DIR"] = str(lake.scratch)
    lake.ctl("branch", "create", "dev", "main")
    dev = lake / "dev"
    with tests.case("executed on a branch, saved, published"):
        pandas.DataFrame({"day": [i % 7 for i in range(1000)], "price": [2] * 1000}).to_csv(dev / "orders.csv", index=False)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
        save(notebook, dev / "report.ipynb")
        lake.ctl("commit", "dev", "-m", "an empty report")
        assert execute(dev, config) == ["2000", repr(str(dev))]
        published(lake, "dev", lambda place: (shown(place / "report.ipynb"), pandas.read_parquet(place / "daily.parquet").price.sum()))
    with tests.case("executed again on another branch"):
        lake.ctl("branch", "create", "other", "main")
        other = lake / "other"
        with open(other / "orders.csv", "a", encoding="utf-8") as file:
            file.write("3,500\n")
        assert execute(other, config) == ["2500", repr(str(other))]
        assert shown(dev / "report.ipynb") == ["2000", repr(str(dev))]
        assert pandas.read_parquet(dev / "daily.parquet").price.sum() == 2000
        revision = published(lake, "other", lambda place: shown(place / "report.ipynb"))
        assert shown(revision / ".ipynb_checkpoints" / "report-checkpoint.ipynb") == ["2500", repr(str(other))]
tests.done()
