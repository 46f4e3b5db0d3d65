"""The only entry point: `python run.py --help`."""

from iad_r1.launch import main

if __name__ == "__main__":
    raise SystemExit(main())
