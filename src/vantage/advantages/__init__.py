"""Who gets the credit: advantages and the values they rest on."""
