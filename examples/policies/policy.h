/* What both examples share: room for the input, and just enough reading of canonical JSON.
 *
 * The host writes keys sorted and without white space, so that a field is found by its text:
 * a quote inside of a string is always escaped, and `"tool_name":` cannot be part of a value.
 */
typedef unsigned char byte;
typedef unsigned int u32;

enum vote { PASS = 0, DEFER = 1, REJECT = 2 };

/* A buffer of its own is the whole allocator: there is one input in the life of an instance. */
static byte input[65536];

__attribute__((export_name("alloc"))) byte *alloc(u32 len) {
    return len <= sizeof input ? input : 0;
}

static u32 length(const char *text) {
    u32 len = 0;
    while (text[len]) len++;
    return len;
}

static int starts_with(const byte *at, const byte *end, const char *text) {
    u32 len = length(text);
    if ((u32)(end - at) < len) return 0;
    for (u32 i = 0; i < len; i++)
        if (at[i] != (byte)text[i]) return 0;
    return 1;
}

/* The first place after `text`, or 0. */
static const byte *after(const byte *at, const byte *end, const char *text) {
    for (; at < end; at++)
        if (starts_with(at, end, text)) return at + length(text);
    return 0;
}

/* The value of base64's digit, or -1. */
static int digit(byte c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static byte decoded[49152];

/* Decodes the field "params_canonical_json_b64" into `decoded`; its length, 0 where there is none. */
static u32 params(const byte *at, const byte *end) {
    at = after(at, end, "\"params_canonical_json_b64\":\"");
    u32 bits = 0, held = 0, len = 0;
    for (; at && at < end && digit(*at) >= 0; at++) {
        held = held << 6 | (u32)digit(*at);
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            decoded[len++] = (byte)(held >> bits);
        }
    }
    return len;
}

/* Where the value of the outermost object's field `name` begins, or 0: fields of objects inside do
 * not count, nor does what a string only looks like. */
__attribute__((unused)) static const byte *field(const byte *at, const byte *end, const char *name) {
    u32 depth = 0;
    while (at < end) {
        byte c = *at++;
        if (c == '{' || c == '[') depth++;
        if (c == '}' || c == ']') depth--;
        if (c != '"') continue;
        const byte *from = at;
        for (; at < end && *at != '"'; at++)
            if (*at == '\\') at++;
        const byte *to = at < end ? at : end;
        at++;
        if (depth == 1 && at < end && *at == ':' && (u32)(to - from) == length(name) && starts_with(from, to, name))
            return at + 1;
    }
    return 0;
}
