"""python.py: a distilled model in Python, through ctypes and the shared library. It needs no packages.

    make build/libmohawk.so
    python3 examples/python.py examples/tiny "Once upon a time"
"""
import ctypes
import os
import sys

LIBRARY = os.environ.get("MOHAWK_LIBRARY", "build/libmohawk.so")


class Sampling(ctypes.Structure):  # all fields of mhk_sampling, in order; zero means the default
    _fields_ = [
        ("temperature", ctypes.c_double),
        ("greedy", ctypes.c_int),
        ("exact", ctypes.c_int),
        ("top_k", ctypes.c_int),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("typical", ctypes.c_double),
        ("repetition", ctypes.c_double),
        ("frequency", ctypes.c_double),
        ("presence", ctypes.c_double),
        ("penalty_tokens", ctypes.c_int),
        ("bias", ctypes.c_void_p),
        ("n_bias", ctypes.c_int),
        ("stop_tokens", ctypes.POINTER(ctypes.c_int32)),
        ("n_stop_tokens", ctypes.c_int),
        ("stop_strings", ctypes.POINTER(ctypes.c_char_p)),
        ("n_stop_strings", ctypes.c_int),
    ]


def load(path=LIBRARY):
    c = ctypes.CDLL(os.path.abspath(path))
    handle, text, whole = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in [
        ("mhk_create", handle, [handle]),
        ("mhk_destroy", None, [handle]),
        ("mhk_failed", whole, [handle]),
        ("mhk_message", text, [handle]),
        ("mhk_load", handle, [handle, text]),
        ("mhk_session_create", handle, [handle, handle]),
        ("mhk_feed_text", whole, [handle, text]),
        ("mhk_sample", ctypes.c_int32, [handle, ctypes.POINTER(Sampling)]),
        ("mhk_text_out", text, [handle]),
    ]:
        function = getattr(c, name)
        function.restype, function.argtypes = result, arguments
    return c


def write(c, path, prompt, tokens, **sampling):
    """Yields the continuation of a prompt, piece by piece."""
    context = c.mhk_create(None)
    try:
        session = c.mhk_session_create(c.mhk_load(context, os.fsencode(path)), None)
        c.mhk_feed_text(session, prompt.encode())
        how = Sampling(**sampling)
        for _ in range(tokens):
            if c.mhk_sample(session, ctypes.byref(how)) < 0:  # the end of the text, or an error
                break
            yield c.mhk_text_out(session).decode()
        if c.mhk_failed(context):
            raise RuntimeError(c.mhk_message(context).decode())
    finally:
        c.mhk_destroy(context)  # and everything made from it


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "examples/tiny"
    prompt = sys.argv[2] if len(sys.argv) > 2 else "Once upon a time"
    print(prompt, end="", flush=True)
    for piece in write(load(), path, prompt, 60, temperature=0.8, top_p=0.95, seed=1):
        print(piece, end="", flush=True)
    print()
