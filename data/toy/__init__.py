"""The generated scenes of the toy recipe: what is in them, and the canvas they are painted on."""
