# Sourced by the other scripts: makes .venv once and installs fedrec with the extras named in $1.
# A second call finds the stamp of the same pyproject.toml and does nothing.

setup_env() {
    local extras="$1" python="${PYTHON:-python3}" stamp
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "fedrec needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
        return 1
    fi
    stamp=".venv/.fedrec-$extras-$(cksum <pyproject.toml | cut -d' ' -f1)"
    if [ ! -f "$stamp" ]; then
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        echo "installing fedrec[$extras] into .venv (minutes the first time)" >&2
        # The CPU build of torch where pip's own settings offer one; elsewhere the next line takes the default build.
        .venv/bin/python -m pip install -q --only-binary=:all: "torch==2.13.0" >/dev/null 2>&1 || true
        .venv/bin/python -m pip install -q -e ".[$extras]"
        touch "$stamp"
    fi
    export PATH="$PWD/.venv/bin:$PATH" VIRTUAL_ENV="$PWD/.venv"
}
