#!/bin/sh
# Runs the payload of a task that PanDA's prun submitted, as its own scripts for building and running do: in the run
# directory of the sandbox, with the input files beside it, and gives the outputs their names when it has ended.
# PANDA_EXEC     the command line, or PANDA_BUILD that of a build, whose whole directory is the output
# PANDA_RUN_DIR  where it runs, below the sandbox's top
# PANDA_OUTPUTS  a line for each output: its name or wildcard, and what comes before and behind PANDA_SERIAL in the
#                name that it gets, with slashes between them, as no name has one
# PANDA_TXT      a line for each list of input names: the stream, a tab, and the file to write
# PANDA_SECRETS  names of secrets, for panda_secrets.json
# PANDA_STREAMS  names of secondary inputs
set -u
top=$PWD
tab=$(printf '\t')

fail() {
    echo "$*" >&2
    exit 1
}

# Links the files of a list into the current directory, where they are not there already.
link_all() {
    while IFS= read -r path; do
        [ -e "./${path##*/}" ] || ln -s "$path" "./${path##*/}" || fail "cannot link $path"
    done <"$1"
}

capitals() {
    printf '%s' "$1" | tr '[:lower:]' '[:upper:]'
}

# The file with the paths of a stream's files.
list_of() {
    if [ "$1" = IN ]; then
        echo "$PILOTAGE_INPUT_FILES"
    else
        eval "echo \"\${PILOTAGE_SECONDARY_$(capitals "$1")}\""
    fi
}

# A file as a string of JSON.
as_json() {
    sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e "s/$tab/\\\\t/g" "$1" | awk 'BEGIN { printf "\"" } NR > 1 { printf "\\n" } { printf "%s", $0 } END { printf "\"" }'
}

if [ -n "${PILOTAGE_SECONDARY_BUILD:-}" ]; then
    library=$(head -n 1 "$PILOTAGE_SECONDARY_BUILD")
    tar -xzf "$library" || fail "cannot unpack the library $library"
fi
mkdir -p "$PANDA_RUN_DIR" && cd "$PANDA_RUN_DIR" || fail "there is no run directory $PANDA_RUN_DIR"
PATH=$PATH:.
export PATH

if [ -n "${PANDA_SECRETS:-}" ]; then
    # Beside the log archive's reach: links are not followed there.
    (
        umask 077
        separator='{'
        for name in $PANDA_SECRETS; do
            eval "file=\${PILOTAGE_SECRET_$(capitals "$name")}"
            printf '%s"%s": ' "$separator" "$name"
            as_json "$file"
            separator=', '
        done >"$TMPDIR/panda_secrets.json"
        printf '}' >>"$TMPDIR/panda_secrets.json"
    )
    ln -s "$TMPDIR/panda_secrets.json" panda_secrets.json || fail "cannot link panda_secrets.json"
fi

if [ -n "${PANDA_BUILD:-}" ]; then
    printf '%s\n' "$PANDA_BUILD" >__run_build_exec.sh
    sh ./__run_build_exec.sh || exit $?
    set --
    # What was there before is no part of the build: files of a pilot of PanDA, which has its own beside the payload's.
    [ ! -f "${PILOTAGE_PATH:-}/before.txt" ] || set -- -X "$PILOTAGE_PATH/before.txt"
    cd "$top" && tar -czf "$TMPDIR/build.tgz" "$@" . && mv "$TMPDIR/build.tgz" pilotage-build.tgz
    exit $?
fi

link_all "$PILOTAGE_INPUT_FILES"
for stream in ${PANDA_STREAMS:-}; do
    link_all "$(list_of "$stream")"
done
if [ -n "${PANDA_TXT:-}" ]; then
    printf '%s\n' "$PANDA_TXT" | while IFS=$tab read -r stream file; do
        sed 's:.*/::' "$(list_of "$stream")" >"$file" || exit 1
    done || fail "cannot write the lists of input"
fi

printf '%s\n' "$PANDA_EXEC" >__run_main_exec.sh
echo "=== exec script ==="
cat __run_main_exec.sh
echo "=== its output ==="
sh ./__run_main_exec.sh
code=$?
if [ "$code" -ne 0 ]; then
    echo "the payload ended with exit code $code" >&2
    exit "$code"
fi

[ -z "${PANDA_OUTPUTS:-}" ] || printf '%s\n' "$PANDA_OUTPUTS" | while IFS=/ read -r name before after; do
    final=$before$PANDA_SERIAL$after
    case $name in
    *[*?]*)
        # Only names with wildcards are split and expanded; prun takes no spaces in them.
        set -- $name
        if [ -e "$1" ]; then
            tar -czf "$TMPDIR/output.tgz" "$@" && mv "$TMPDIR/output.tgz" "$top/$final" || exit 1
        fi
        ;;
    *)
        if [ -e "$name" ]; then
            mv "$name" "$top/$final" || exit 1
        fi
        ;;
    esac
    if [ -e "$top/$final" ] && [ -f userJobMetadata.json ]; then
        cp userJobMetadata.json "$top/$final.json" || exit 1
    fi
done || fail "the outputs cannot be given their names"
