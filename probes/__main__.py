"""`python -m probes asr|speaker|emotion|classify|run|study`."""

from __future__ import annotations

import sys

from probes.cli import main

sys.exit(main())
