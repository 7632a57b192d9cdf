"""What leaves the program: scripts that people read and edit."""
