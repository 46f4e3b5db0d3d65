"""The only entry point: `python run.py --help`."""

import sys

from iad_r1.command import options

if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(options.help_text())
        sys.exit(0)
    from iad_r1.command.launch import main

    sys.exit(main())
