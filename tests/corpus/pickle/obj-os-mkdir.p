(cos
mkdir
S'l2l-was-here'
o.