"""What tests of clients share: both ways that data takes, and a look at every place.

    for lake, way in both_ways(tests):
        with tests.case(way("appends")):
            ...
            rev = published(lake, "dev", look)
"""
from lake import Lake

WAYS = {"": (), "copied by the daemon: ": ("--no-passthrough",)}


def passes_through(lake):
    return "\nlake_mount_passthrough 1\n" in (lake / ".lake/metrics").read_text()


def both_ways(tests):
    """A lake with a branch `dev`, mounted once each way; `way` puts which one before a case's name."""
    for prefix, options in WAYS.items():
        with Lake(*options) as lake:
            if bool(options) == passes_through(lake):
                tests.skip("passed through", "the kernel or the user may not")
                continue
            lake.ctl("branch", "create", "dev", "main")
            yield lake, prefix.__add__


def published(lake, branch, look):
    """Commit a branch and merge it into main. What look(directory) finds must be the same before, on
    both branches after, and in the revision. Returns the revision's directory."""
    wanted = look(lake / branch)
    lake.ctl("commit", branch, "-m", "work")
    revision = lake / ("@" + lake.ctl("merge", branch, "main")["commit"])
    for place in (lake / branch, lake / "main", revision):
        found = look(place)
        assert found == wanted, f"{place}: {found!r}, wanted {wanted!r}"
    return revision
