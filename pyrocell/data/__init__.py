"""Raw counts of a screen: checked, registered, read from files, summed, cut into minibatches."""
