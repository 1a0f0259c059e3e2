"""appliance-ctl: the tool an administrator lives with. The commands, and what they show."""
