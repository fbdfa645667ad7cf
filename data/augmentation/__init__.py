"""What changes training photos at random: the guide's jitter, the paper's crops, and the jitter on the device."""
