"""DVC for a project in any folder: `python -m subspacelab.pipeline.dvc exp run --temp ...`.

DVC 3.67 pushes to a temporary copy by an address, `file://<path>`, in which `%` and `#` have a meaning, and writes the
copy's configuration in ASCII. In folders with such names an experiment fails, or is lost silently; this wrapper
corrects both and changes nothing else.
"""

import os
import sys
from functools import partial

from configobj import ConfigObj
from dvc.cli import main
from dvc.repo.experiments.executor import local

if __name__ == "__main__":
    local.BaseLocalExecutor.git_url = property(lambda executor: os.path.abspath(executor.root_dir))
    local.ConfigObj = partial(ConfigObj, encoding="utf-8")
    sys.exit(main(sys.argv[1:]))
