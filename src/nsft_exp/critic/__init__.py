"""Critics G(y_r; y_c, Q): find the errors of a rejected answer and write a dialogue that corrects them."""
