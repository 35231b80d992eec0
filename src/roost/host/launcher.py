"""The program that `jail.enter` starts: it locks itself up and then becomes the jailed program.

Run by path with `python -I -S`, where no package can be imported: it shows Python its own directory as `roost.host`,
without running the package, whose imports would cost more than the whole jail.
"""

import sys
from os.path import abspath, dirname


def main() -> None:
    here = dirname(abspath(__file__))
    for name, path in (("roost", dirname(here)), ("roost.host", here)):
        package = type(sys)(name)
        package.__path__ = [path]
        sys.modules[name] = package
    from roost.host import confinement

    confinement.launch(*(int(number) for number in sys.argv[1:]))


if __name__ == "__main__":
    main()
