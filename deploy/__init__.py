"""What makes the project fit to be installed elsewhere: wheels, packages, the Ansible role's variables."""
