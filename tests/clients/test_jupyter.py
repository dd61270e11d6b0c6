#!/usr/bin/env python3
"""A Jupyter notebook on a branch, executed without a browser: it opens the branch's files, is saved into the lake with
a checkpoint, as Jupyter does, and is executed again on another branch. At a revision it reads, cannot be saved and says
why, and is saved elsewhere."""
import errno
import os
import pathlib
import subprocess
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


def read_only(function, *arguments):
    try:
        function(*arguments)
    except OSError as failure:
        assert failure.errno == errno.EROFS, failure
    else:
        raise AssertionError("a revision was changed")


def check_revision(lake, config):
    """Cells read at a revision; those that write there, and saving, say that it is read-only."""
    lake.ctl("branch", "create", "past", "main")
    reads = ("import pandas\nint(pandas.read_csv('orders.csv').price.sum())",
             "try:\n    open('made.txt', 'w')\nexcept OSError as problem:\n    said = problem.strerror\nsaid",
             "open('orders.csv', 'a')")
    (lake / "past" / "orders.csv").write_text("day,price\n1,2000\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in reads])
    save(notebook, lake / "past" / "read.ipynb")
    commit = lake.ctl("commit", "past", "-m", "to read")["commit"]
    at = lake / f"@{commit}"
    with tests.case("executed at a revision: it reads, and a cell that writes fails with EROFS"):
        notebook = nbformat.read(at / "read.ipynb", as_version=4)
        client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", config=config,
                                         resources={"metadata": {"path": str(at)}})
        try:
            client.execute()
            raise AssertionError("a committed file was opened for writing")
        except nbclient.exceptions.CellExecutionError as failure:
            assert failure.ename == "OSError" and "[Errno 30] Read-only file system: 'orders.csv'" in failure.evalue, failure
        first, second = (cell.outputs[0]["data"]["text/plain"] for cell in notebook.cells[:2])
        assert (first, second) == ("2000", "'Read-only file system'"), (first, second)
    with tests.case("it cannot be saved there, nor its checkpoint, and nothing is left of the attempt"):
        before = sorted(os.listdir(at)), (at / "read.ipynb").read_bytes()
        for path in (at / "read.ipynb", at / "new.ipynb"):
            read_only(save, notebook, path)
        read_only(os.mkdir, at / ".ipynb_checkpoints" / "x")
        read_only(os.replace, at / "read.ipynb", at / "other.ipynb")
        assert before == (sorted(os.listdir(at)), (at / "read.ipynb").read_bytes())
        save(notebook, lake / "past" / "executed.ipynb")
        assert nbformat.read(lake / "past" / "executed.ipynb", as_version=4).cells[0].outputs
    return at


def check_nbconvert(lake, at):
    try:
        import nbconvert  # noqa: F401
    except ImportError as error:
        tests.skip("nbconvert", str(error))
        return
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(lake.scratch), "JUPYTER_DATA_DIR": str(lake.scratch)}
    convert = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--allow-errors",
               "--KernelManager.transport=ipc", f"--KernelManager.ip={lake.scratch / 'convert'}", at / "read.ipynb"]
    with tests.case("nbconvert --execute at a revision says that it is read-only; with --output-dir it writes elsewhere"):
        done = subprocess.run(convert, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode != 0 and "Read-only file system" in done.stderr, done.stderr[-2000:]
        place = pathlib.Path(lake / "past" / "reports")
        done = subprocess.run([*convert, "--output-dir", place], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        executed = nbformat.read(place / "read.ipynb", as_version=4)
        assert executed.cells[0].outputs[0]["data"]["text/plain"] == "2000"
        assert executed.cells[2].outputs[0]["ename"] == "OSError"
        published(lake, "past", lambda there: len(nbformat.read(there / "reports" / "read.ipynb", as_version=4).cells))


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
    at = check_revision(lake, config)
    check_nbconvert(lake, at)
tests.done()
