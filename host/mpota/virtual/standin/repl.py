# The prompt of a board on its serial port: shared/runtime/pyexec.c (friendly REPL, raw REPL, raw
# paste), with as much of readline.c as typing needs. boot_app.py runs it where a terminal is
# connected: mpota/virtual/terminal.py.

import io
import select
import sys

import link
from micropython import const

_CTRL_A = const(1)
_CTRL_B = const(2)
_CTRL_C = const(3)
_CTRL_D = const(4)
_CTRL_E = const(5)
_BACKSPACE = const(8)
_ENTER = const(13)
_ESCAPE = const(27)
_DELETE = const(127)

# Half of MICROPY_REPL_STDIN_BUFFER_MAX: what a client may send ahead in raw paste mode, twice.
_WINDOW_SIZE = const(128)
_POLL_MS = const(20)
_HISTORY_SIZE = const(8)

_BLOCK_STARTS = ("if", "while", "for", "try", "with", "def", "class", "async", "@")
_OWN_FILES = tuple('  File "%s.py"' % name for name in ("boot_app", "link", "machine", "repl"))

_stdin = sys.stdin.buffer
_poller = select.poll()
_poller.register(_stdin, select.POLLIN)
_byte = bytearray(1)
_history = []
_print_exception = sys.print_exception


def set_up(posing_sys, posing_micropython):
    # What scripts find different on a board from the unix port: text that is printed ends its
    # lines with CR LF, bytes go out as they are; Ctrl-C is caught by the driver of the port.
    posing_sys.stdout = _TextOut(sys.stdout)
    posing_micropython.kbd_intr = lambda char: link.call(link.INTERRUPT_CHAR, char & 0xFF)
    import machine

    machine.soft_reset = _soft_reset
    link.mask_interrupts()


def _soft_reset():
    raise SystemExit


class _TextOut(io.IOBase):
    def __init__(self, text_out):
        self._text_out = text_out
        self.buffer = _RawOut()

    def write(self, text):
        return self._text_out.write(text)


class _RawOut(io.IOBase):
    def write(self, data, size=None):
        data = data if size is None else memoryview(data)[:size]
        link.call(link.SEND, 0, data)
        return len(data)


def run(is_raw):
    # Returns when MicroPython is to start over: Ctrl-D at the prompt, or sys.exit().
    while True:
        repl = _raw_repl if is_raw else _friendly_repl
        if not repl():
            return
        is_raw = not is_raw
        link.call(link.RAW_MODE, is_raw)


def guarded(run, *args):
    # Run what Ctrl-C may interrupt. One that comes too late for it surfaces in the second call.
    try:
        link.call(link.INTERRUPT_CHAR, _CTRL_C)
        run(*args)
    finally:
        link.call(link.INTERRUPT_CHAR, 0xFF)


def _send(text):
    link.call(link.SEND, 0, text)


def _wait_byte():
    while not _poller.poll(_POLL_MS):  # timers and threads go on while nobody types
        pass
    return _read_byte()


def _read_byte():
    if _stdin.readinto(_byte) != 1:
        raise SystemExit  # the host process has gone
    return _byte[0]


# --- raw REPL


def _raw_repl():
    # True: on to the friendly REPL; False: a soft reset.
    _send("raw REPL; CTRL-B to exit\r\n>")
    source = bytearray()
    while True:
        char = _wait_byte()
        if char == _CTRL_A and len(source) == 2 and source[0] == _CTRL_E:
            if source[1] == ord("A"):
                source = None
                if not _execute_pasted():
                    return False
            else:
                _send("R\0")
            _send(">")
        elif char == _CTRL_A:
            _send("raw REPL; CTRL-B to exit\r\n>")
        elif char == _CTRL_B:
            _send("\r\n")
            return True
        elif char == _CTRL_D:
            _send("OK")
            if not source:
                _send("\r\n")
                return False
            text, source = bytes(source), None
            if not _execute_raw(text):
                return False
            text = None
            _send(">")
        elif char != _CTRL_C:
            source.append(char)
            continue
        source = bytearray()


def _execute_pasted():
    # do_reader_stdin, but the source is compiled when it is complete.
    _send(b"R\x01" + bytes((_WINDOW_SIZE & 0xFF, _WINDOW_SIZE >> 8)) + b"\x01")
    source = bytearray()
    room = _WINDOW_SIZE
    while True:
        char = _read_byte()
        if char in (_CTRL_C, _CTRL_D):
            _send("\x04")
            break
        source.append(char)
        room -= 1
        if not room:
            _send("\x01")
            room = _WINDOW_SIZE
    text, source = bytes(source), None
    if char == _CTRL_C:
        _send("\x04")
        print("KeyboardInterrupt: ")
        _send("\x04")
        return True
    return _execute_raw(text)


def _execute_raw(text):
    is_exit, message = _execute(text, "exec")
    _send("\x04")
    print(message, end="")
    _send("\x04")
    return not is_exit


def _execute(text, mode):
    # (whether it asked for a soft reset, what to say of an exception)
    import __main__

    try:
        guarded(_run_text, text, mode, __main__.__dict__)
    except SystemExit:
        return True, ""
    except BaseException as error:
        return False, traceback_of(error)
    return False, ""


def _run_text(text, mode, names):
    exec(compile(text, "<stdin>", mode), names)


def traceback_of(error):
    # On a board the stand-ins are C code, which no traceback shows.
    text = io.StringIO()
    _print_exception(error, text)
    lines = text.getvalue().split("\n")
    return "\n".join([line for line in lines if line.split(",")[0] not in _OWN_FILES])


# --- friendly REPL


def _friendly_repl():
    # True: on to the raw REPL; False: a soft reset.
    posing = sys.modules["sys"]
    implementation = posing.implementation
    build = posing.version.split("; ")[-1]
    _send("%s; %s\r\n" % (build, implementation._machine))
    _send('Type "help()" for more information.\r\n')
    while True:
        text, char = _read_statement()
        _send("\r\n")
        if char == _CTRL_A:
            return True
        if char == _CTRL_B:
            return _friendly_repl()
        if char == _CTRL_D:
            return False
        if char == _CTRL_E:
            text = _read_pasted()
        if text:
            is_exit, message = _execute(text, "exec" if char == _CTRL_E else "single")
            if is_exit:
                return False
            print(message, end="")


def _read_statement():
    # (source text, 0), or ("", the control character that was typed instead)
    text = ""
    prompt = ">>> "
    while True:
        line, char = _read_line(prompt, not text)
        if char == _CTRL_C or (char and not text):
            return "", char
        text = text + "\n" + line if text else line
        if char == _CTRL_D or not _is_continued(text):
            return text, 0
        _send("\r\n")
        prompt = "... "


def _read_line(prompt, is_first):
    _send(prompt)
    line = ""
    at = len(_history)  # in the history
    while True:
        char = _wait_byte()
        if char == _ENTER:
            if line and (not _history or _history[-1] != line):
                _history.append(line)
                del _history[:-_HISTORY_SIZE]
            return line, 0
        if char == _CTRL_C or (char <= _CTRL_E and is_first and not line):
            return "", char
        if char == _CTRL_D:
            return line, char
        if char in (_BACKSPACE, _DELETE):
            if line:
                line = line[:-1]
                _send("\b\x1b[K")
        elif char == _ESCAPE:
            key = _read_key()
            if key in "AB" and _history:
                at = max(0, at - 1) if key == "A" else min(len(_history), at + 1)
                line = _history[at] if at < len(_history) else ""
                _send("\r\x1b[K" + prompt + line)
        elif char >= 32 or char == 9:
            text = _read_character(char)
            line += text
            _send(text)


def _read_key():
    # The final character of an escape sequence: A is up, B is down.
    char = _read_byte()
    if char == ord("["):
        char = _read_byte()
        while not 0x40 <= char <= 0x7E:
            char = _read_byte()
    return chr(char)


def _read_character(first):
    # UTF-8: the first byte tells how many follow.
    count = 0 if first < 0xC0 else 1 if first < 0xE0 else 2 if first < 0xF0 else 3
    data = bytes([first] + [_read_byte() for _ in range(count)])
    try:
        return str(data, "utf-8")
    except UnicodeError:
        return "?"


def _read_pasted():
    _send("paste mode; Ctrl-C to cancel, Ctrl-D to finish\r\n=== ")
    data = bytearray()
    while True:
        char = _wait_byte()
        if char == _CTRL_C:
            data = b""
        if char in (_CTRL_C, _CTRL_D):
            _send("\r\n")
            return bytes(data)
        data.append(ord("\n") if char == _ENTER else char)
        _send("\r\n=== " if char == _ENTER else bytes((char,)))


def _is_continued(text):
    # repl.c: mp_repl_continue_with_input. A block is ended by an empty line.
    depth = 0
    quote = ""
    at = 0
    while at < len(text):
        if quote:
            if text[at] == "\\":
                at += 1
            elif text.startswith(quote, at) or (text[at] == "\n" and len(quote) == 1):
                at += len(quote) - 1
                quote = ""
        elif text[at] in "'\"":
            quote = text[at] * 3 if text[at : at + 3] == text[at] * 3 else text[at]
            at += len(quote) - 1
        elif text[at] == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
        at += 1
    if depth > 0 or len(quote) == 3 or text.endswith("\\"):
        return True
    first = text.split(None, 1)[0].split("(")[0].rstrip(":") if text.strip() else ""
    return (first in _BLOCK_STARTS or first[:1] == "@") and not text.endswith("\n")
