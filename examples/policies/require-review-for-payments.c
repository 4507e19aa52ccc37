/* Leaves payment.charge of more than 100 units of a currency to a person.
 *
 * The amount is the parameter `amount`, a JSON number. What is no plain number (missing, text, an
 * exponent, a minus) goes to a person too: a policy that does not understand must not pass.
 */
#include "policy.h"

#define MOST 100

__attribute__((export_name("policy_oracle_decide"))) int policy_oracle_decide(const byte *at, u32 len) {
    const byte *end = at + len;
    if (!after(at, end, "\"tool_name\":\"payment.charge\"")) return PASS;
    end = decoded + params(at, end);
    at = field(decoded, end, "amount");
    if (!at) return DEFER;

    u32 whole = 0, digits = 0;
    for (; at < end && *at >= '0' && *at <= '9'; at++, digits++) {
        whole = whole * 10 + (u32)(*at - '0');
        if (whole > MOST) return DEFER;
    }
    int has_fraction = 0;
    if (digits && at < end && *at == '.')
        for (at++; at < end && *at >= '0' && *at <= '9'; at++)
            has_fraction |= *at != '0';
    int is_number = digits && at < end && (*at == ',' || *at == '}');
    return is_number && !(whole == MOST && has_fraction) ? PASS : DEFER;
}
