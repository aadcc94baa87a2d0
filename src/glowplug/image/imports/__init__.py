"""What programs of an image will read before anybody has run them: told by what their files say they load."""
