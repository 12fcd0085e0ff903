"""`python -m l2l`, as `l2l`."""

from l2l.cli import main

raise SystemExit(main())
