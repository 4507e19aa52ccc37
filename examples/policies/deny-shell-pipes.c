/* Rejects exec and shell.exec whose command pipes a download into a shell: `curl … | sh`.
 *
 * It looks for a downloader, then for a pipe after it, then for a shell as the next word. That
 * stops what people paste, not what somebody hides: a veto is a seat belt, and no sandbox.
 */
#include "policy.h"

static int is_space(byte c) {
    return c == ' ' || c == '\t';
}

/* Whether a word starts here: a name is not part of a longer one. */
static int is_word(const byte *from, const byte *at, const byte *end, const char *name) {
    if (!starts_with(at, end, name)) return 0;
    const byte *next = at + length(name);
    byte before = at > from ? at[-1] : ' ';
    byte behind = next < end ? *next : ' ';
    int letter_before = (before >= 'a' && before <= 'z') || before == '-' || before == '_';
    int letter_behind = (behind >= 'a' && behind <= 'z') || behind == '-' || behind == '_';
    return !letter_before && !letter_behind;
}

static int any_word(const byte *from, const byte *at, const byte *end, const char *const *names) {
    for (; *names; names++)
        if (is_word(from, at, end, *names)) return 1;
    return 0;
}

static const char *const DOWNLOADERS[] = {"curl", "wget", "fetch", 0};
static const char *const SHELLS[] = {"sh", "bash", "zsh", "dash", "ksh", "python", "python3", "perl", 0};
static const char *const PREFIXES[] = {"sudo", "env", 0};

/* The word after a pipe: past white space, `sudo`, `env`, and the directories of a path. */
static const byte *command(const byte *from, const byte *at, const byte *end) {
    for (;;) {
        while (at < end && is_space(*at)) at++;
        int is_prefix = 0;
        for (const char *const *prefix = PREFIXES; *prefix; prefix++)
            if (is_word(from, at, end, *prefix)) {
                at += length(*prefix);
                is_prefix = 1;
                break;
            }
        if (is_prefix) continue;
        const byte *name = at;
        for (; at < end && !is_space(*at) && *at != '|' && *at != '"'; at++)
            if (*at == '/') name = at + 1;
        return name;
    }
}

__attribute__((export_name("policy_oracle_decide"))) int policy_oracle_decide(const byte *at, u32 len) {
    const byte *end = at + len;
    if (!after(at, end, "\"tool_name\":\"exec\"") && !after(at, end, "\"tool_name\":\"shell.exec\""))
        return PASS;
    const byte *from = decoded;
    end = decoded + params(at, end);
    int downloads = 0;
    for (at = from; at < end; at++) {
        downloads |= any_word(from, at, end, DOWNLOADERS);
        if (downloads && *at == '|' && any_word(from, command(from, at + 1, end), end, SHELLS))
            return REJECT;
    }
    return PASS;
}
