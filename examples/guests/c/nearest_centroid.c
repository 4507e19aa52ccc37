/* Predicts that a tumour is benign if it is nearer to the benign tumours' mean than to the malignant ones'.
 *
 * The guest carries the model and the measurements of every item. It asks nothing, so it is charged for no answer, and
 * submits its predictions to be judged.
 */
#include "guest.h"
#include "tumours.h"

/* Squared, since only the order of two distances counts, and in units of each measurement's spread: a perimeter is
 * a thousand times as large a number as a share of concave points. */
static float distance(const float *tumour, const float *centre) {
    float sum = 0;
    for (int f = 0; f < FEATURES; f++) {
        float apart = (tumour[f] - centre[f]) / spread[f];
        sum += apart * apart;
    }
    return sum;
}

GUEST_RUN {
    static byte predictions[ITEMS];
    for (int i = 0; i < ITEMS; i++)
        predictions[i] = distance(tumours[i], benign) < distance(tumours[i], malignant);
    submit_predictions(predictions, ITEMS);

    /* A run without an output is not judged. This guest has nothing to tell, so any symbol will do. */
    byte symbol = 0;
    emit_structured_claim(&symbol, 1);
}
