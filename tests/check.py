"""What the Python tests share: checks that are counted, and the last line that tests/run.sh reads."""
import pathlib
import sys

NAME = pathlib.Path(sys.argv[0]).name
passed = failed = skipped = 0


def check(good, what):
    """Counts a check; says what is wrong unless it is good."""
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    if not good:
        print(f"  {what}"[:600])
    return bool(good)


def left_out(why):
    """Counts a part that cannot run here."""
    global skipped
    skipped += 1
    print(f"  skipped: {why}")


def skip(why):
    """Ends a test that cannot run here."""
    print(f"{NAME}: 0 passed, 0 failed (skipped: {why})")
    sys.exit(0)


def end(note=""):
    print(f"{NAME}: {passed} passed, {failed} failed" + (f" ({skipped} skipped)" if skipped else "") + note)
    sys.exit(failed != 0)
