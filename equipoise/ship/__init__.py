"""What ships, what it claims, and how its promises are held to account."""
