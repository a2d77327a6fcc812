"""Low-rank updates: their algebra (`lowrank`), the linear layer that carries them (`linear`), and where (`attach`)."""
