"""The code that a card shows, for a reader to paste."""

from qsched.report.sample_code import in_order


def test_imports_are_merged() -> None:
    lines = {"from b import y", "from b import x", "import json", "import torch as t"}
    assert in_order(lines) == "import json\n\nimport torch as t\nfrom b import x, y"
    assert in_order({"import torch"}) == "import torch"
