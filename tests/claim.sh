# A claim that deserves a certificate, for the tests of what is shipped. Sourced, with $root the tree; not a test.
# shellcheck shell=bash

# Labels and predictions of a fair model: a threshold on one measurement, chosen on the first 169
# tumours and predicted for the other 400. It is right where nine of ten are.
write_claim() { # directory
    awk -F, -v dir="$1" '
        { sub(/\r$/, "") } # the lines end in CR LF
        NR == 1 { for (i = 1; i <= NF; i++) if ($i == "worst_radius") at = i; next }
        { radius[NR - 2] = $at; benign[NR - 2] = $NF }
        END {
            for (cut = 10; cut < 25; cut += 0.1) {
                right = 0
                for (i = 0; i < 169; i++) right += (radius[i] < cut) == benign[i]
                if (right > most) { most = right; best = cut }
            }
            print "item,label" >(dir "/labels.csv")
            for (i = 169; i < NR - 1; i++) {
                print "tumour-" i "," benign[i] >(dir "/labels.csv")
                print (radius[i] < best ? 1 : 0) >(dir "/predictions.csv")
            }
        }' "$root/examples/data/breast-cancer-wisconsin.csv"
}
